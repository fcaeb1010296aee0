"""Opening base models: what is read, and one clear line for everything that is wrong with a directory."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.model.checkpoint import read_base
from services.model.device import pick_device
from services.model.errors import CheckpointError, DeviceError
from services.model.families import families, family_of
from tests.unit.pico import write_pico_checkpoint


def damaged(directory: Path, name: str, change) -> Path:
    tensors = load_file(directory / "model.safetensors")
    change(tensors[name])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def test_a_directory_is_read_with_its_bytes_in_the_asked_dtype(tmp_path):
    write_pico_checkpoint(tmp_path)
    single, half = read_base(tmp_path), read_base(str(tmp_path), dtype="bfloat16")
    assert single.full_bytes == 2 * half.full_bytes
    shape = single.model.shape
    num_expert_params = sum(layer.num_experts * layer.expert_params for layer in shape.layers)
    assert single.full_bytes == 4 * (shape.non_expert_params + num_expert_params)
    assert {tensor.dtype for tensor in half.model.parameters().values()} == {torch.bfloat16}


def test_the_base_id_names_content_and_not_the_place(tmp_path):
    first = read_base(write_pico_checkpoint(tmp_path / "a"))
    assert read_base(write_pico_checkpoint(tmp_path / "b")).base_id == first.base_id
    assert read_base(write_pico_checkpoint(tmp_path / "c", seed=1)).base_id != first.base_id


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    write_pico_checkpoint(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name.replace('.', '[.]')} is missing") as caught:
        read_base(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pickle_is_refused_whatever_its_name(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    write_pico_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(CheckpointError, match="pickles are never read"):
        read_base(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        read_base(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_damaged_headers_are_refused_before_they_are_parsed(tmp_path):
    write_pico_checkpoint(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for data, problem in [
        (whole[:5], "too short"),
        (whole[: 8 + length // 2], "truncated"),
        (whole[:8] + b"\xff" * length + whole[8 + length :], "corrupt header"),
        (struct.pack("<Q", 1 << 25) + bytes(1 << 25), "more than"),
    ]:
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=problem):
            read_base(tmp_path)
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError):
        read_base(tmp_path)


def test_not_a_number_is_refused_with_its_tensor(tmp_path):
    damaged(write_pico_checkpoint(tmp_path), "encoder.final_layer_norm.weight", lambda tensor: tensor[3].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"encoder\.final_norm.*NaN"):
        read_base(tmp_path)


def test_a_value_that_overflows_the_asked_dtype_is_refused(tmp_path):
    damaged(write_pico_checkpoint(tmp_path), "shared.weight", lambda tensor: tensor[3, 3].fill_(1e9))
    assert read_base(tmp_path, "bfloat16")
    with pytest.raises(CheckpointError, match=r"shared.*float16"):
        read_base(tmp_path, "float16")


def test_sources_that_are_nothing_are_named(tmp_path):
    for source in (tmp_path / "absent", "./absent", "absent", str(tmp_path / "absent")):
        with pytest.raises(CheckpointError, match="no such directory"):
            read_base(source)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        read_base(tmp_path / "file")


def test_unknown_names_are_refused(tmp_path):
    write_pico_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"int4.*float32"):
        read_base(tmp_path, dtype="int4")
    with pytest.raises(DeviceError, match="tpu"):
        pick_device("tpu")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(CheckpointError, match=r"llama.*switch"):
        read_base(tmp_path)
    for broken in ("{", "[]"):
        (tmp_path / "config.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_base(tmp_path)


def test_a_broken_tokenizer_is_refused(tmp_path):
    write_pico_checkpoint(tmp_path)
    for broken in ("{", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            read_base(tmp_path)


def test_cuda_is_never_replaced_in_silence():
    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
        pytest.skip("this machine has a CUDA device")
    assert pick_device("auto").type == "cpu"
    with pytest.raises(DeviceError, match="cuda was asked for"):
        pick_device("cuda")


def test_families_are_found_from_their_files():
    assert [family.name for family in families()] == ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "switch"]
    assert family_of({"model_type": "switch_transformers"}).name == "switch"
