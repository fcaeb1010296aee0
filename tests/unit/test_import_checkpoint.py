"""Pickled checkpoints made into safetensors, by a restricted unpickler in a process of its own."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from loadgen.cli.main import app
from services.model.checkpoint import read_base
from services.model.errors import CheckpointError
from services.model.importing import import_checkpoint
from tests.unit.pico import write_pico_checkpoint
from tests.unit.pico_decoders import write_pico_decoder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_pico_checkpoint(tmp_path_factory.mktemp("pico"))


def tensors_of(directory):
    with safe_open(directory / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def pickled(original, directory, tensors=None):
    """The checkpoint as it was published before safetensors: tied names share one tensor."""
    shutil.copytree(original, directory, ignore=shutil.ignore_patterns("*.safetensors"))
    state = tensors_of(original) if tensors is None else tensors
    if tensors is None:
        state |= dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), state["shared.weight"])
    torch.save(state, directory / "pytorch_model.bin")
    return directory


def quiet(what: str) -> None:
    pass


def same_experts(one, other):
    pairs = zip(read_base(one).model.parameters().items(), read_base(other).model.parameters().items(), strict=True)
    return all(name == other_name and torch.equal(tensor, other) for (name, tensor), (other_name, other) in pairs)


def test_an_imported_checkpoint_is_the_model_it_was(original, tmp_path):
    done = import_checkpoint(pickled(original, tmp_path / "old"), tmp_path / "new", quiet)
    assert same_experts(tmp_path / "new", original)
    assert tensors_of(tmp_path / "new").keys() == tensors_of(original).keys(), "names that are tied to another are left out"
    assert (done.num_files, done.num_tensors) == (1, len(tensors_of(original)))
    assert done.num_bytes == (tmp_path / "new" / "model.safetensors").stat().st_size


def test_the_file_itself_can_be_named_whatever_it_is_called(original, tmp_path):
    old = pickled(original, tmp_path / "old")
    (old / "pytorch_model.bin").rename(old / "weights.bin")
    import_checkpoint(old / "weights.bin", tmp_path / "new", quiet)
    assert same_experts(tmp_path / "new", original)


def test_parts_named_in_an_index_become_parts(original, tmp_path):
    old, tensors = pickled(original, tmp_path / "old"), tensors_of(original)
    (old / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, held in parts.items():
        torch.save({name: tensors[name] for name in held}, old / part)
    weight_map = {name: part for part, held in parts.items() for name in held}
    (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert import_checkpoint(old, tmp_path / "new", quiet).num_files == 2
    assert same_experts(tmp_path / "new", original)
    (old / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.bin is named"):
        import_checkpoint(old, tmp_path / "again", quiet)


def test_the_old_format_of_torch_is_read_too(original, tmp_path):
    old = pickled(original, tmp_path / "old")
    torch.save(tensors_of(original), old / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    import_checkpoint(old, tmp_path / "new", quiet)
    assert same_experts(tmp_path / "new", original)


def test_a_model_whose_head_is_its_own_keeps_both_though_they_share_a_tensor(tmp_path):
    original = tmp_path / "original"
    write_pico_decoder(original, "olmoe")
    tensors = tensors_of(original)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    import_checkpoint(pickled(original, tmp_path / "old", tensors), tmp_path / "new", quiet)
    assert read_base(tmp_path / "new").model.shape.vocab_size
    assert "lm_head.weight" in tensors_of(tmp_path / "new")


def test_views_of_one_storage_that_differ_are_each_kept(original, tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    import_checkpoint(pickled(original, tmp_path / "old", {"a": whole[:2], "b": whole[1:], "c": whole.T}), tmp_path / "new", quiet)
    assert all(torch.equal(tensors_of(tmp_path / "new")[name], view) for name, view in (("a", whole[:2]), ("b", whole[1:]), ("c", whole.T)))


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_and_not_run(original, tmp_path):
    old = pickled(original, tmp_path / "old", {"weight": torch.ones(1), "evil": Evil(str(tmp_path / "was-run"))})
    with pytest.raises(CheckpointError, match="holds more than tensors, and was not run"):
        import_checkpoint(old, tmp_path / "new", quiet)
    assert {path.name for path in tmp_path.iterdir()} == {"old"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"not a pickle at all", "is not a file that torch.save wrote|holds more than tensors"),
        (b"", "is not a file that torch.save wrote"),
        (b"PK\x03\x04 cut off", "is not a file that torch.save wrote"),
        ([torch.ones(2)], "holds list, not tensors by name"),
        ({"step": 3}, "holds int under 'step'"),
        ({"z": torch.ones(2, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_what_is_no_checkpoint_is_refused_with_a_line_that_says_why(original, tmp_path, content, problem):
    old = pickled(original, tmp_path / "old")
    path = old / "pytorch_model.bin"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=problem) as caught:
        import_checkpoint(old, tmp_path / "new", quiet)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_folders_that_cannot_be_used_are_named(original, tmp_path):
    with pytest.raises(CheckpointError, match="safetensors already"):
        import_checkpoint(original, tmp_path / "new", quiet)
    with pytest.raises(CheckpointError, match="is not there"):
        import_checkpoint(tmp_path / "absent", tmp_path / "new", quiet)
    with pytest.raises(CheckpointError, match="is there already"):
        import_checkpoint(pickled(original, tmp_path / "old"), tmp_path, quiet)


def test_the_command_says_what_it_made(original, tmp_path):
    old, new = pickled(original, tmp_path / "old"), tmp_path / "new"
    result = CliRunner().invoke(app, ["import-checkpoint", str(old), "--out", str(new), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["num_tensors"] == len(tensors_of(new))
    again = CliRunner().invoke(app, ["import-checkpoint", str(old), "--out", str(new)])
    assert (again.exit_code, again.stderr.count("\n")) == (2, 1)
