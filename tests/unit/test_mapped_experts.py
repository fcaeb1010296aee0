"""Experts kept in mapped files beside the cache, instead of in memory."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import align
from services.model.checkpoint import BaseModel, read_base
from services.model.errors import CheckpointError
from services.model.mapped_experts import MappedExperts, map_layer, write_layer
from services.model.memory import unique_bytes
from services.model.merging import merged_experts
from tests.unit.pico import write_pico_checkpoint
from tests.unit.pico_decoders import write_pico

PLAN = LayerPlan(((0, 5), (2, 1, 7), (3,), (6, 4)), ((0.75, 0.25), (0.5, 0.25, 0.25), (1.0,), (1.0, 0.0)))
SHAPES = {"wi": (6, 4), "wo": (4, 6)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_pico_checkpoint(tmp_path_factory.mktemp("pico"))


def merged(base: BaseModel):
    plan = MergePlan(base.base_id, "m-smoe", (PLAN,) * len(base.model.experts))
    return merged_experts(base, align(base), plan)


def assert_equal_experts(one, other):
    for first, second in zip(one, other, strict=True):
        assert first.weights.keys() == second.weights.keys()
        assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)
        assert torch.equal(first.index_map, second.index_map)


def files(directory):
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*.safetensors")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mapped_experts_and_what_is_merged_from_them_are_those_that_are_held(checkpoint, tmp_path, dtype):
    held, mapped = read_base(checkpoint, dtype), read_base(checkpoint, dtype, cache_dir=tmp_path)
    assert all(isinstance(stack, MappedExperts) for stack in mapped.model.experts)
    assert (mapped.base_id, mapped.full_bytes) == (held.base_id, held.full_bytes)
    assert unique_bytes(mapped.model) == unique_bytes(held.model)
    assert_equal_experts(mapped.model.experts, held.model.experts)
    assert_equal_experts(merged(mapped), merged(held))


@pytest.mark.parametrize("family", ["switch", "mixtral"])
def test_a_model_with_mapped_experts_answers_as_one_that_holds_them(tmp_path, family):
    checkpoint = tmp_path / "model"
    write_pico(checkpoint, family)
    held, mapped = read_base(checkpoint), read_base(checkpoint, cache_dir=tmp_path / "cache")
    with torch.no_grad():
        answers = [base.model.teacher_forced([[5, 9, 11, 1], [7, 1]], [[8, 9, 1], [10, 1]]) for base in (held, mapped)]
    torch.testing.assert_close(answers[0], answers[1])


def test_memory_given_back_is_read_again(checkpoint, tmp_path):
    base = read_base(checkpoint, cache_dir=tmp_path)
    before = [stack.weights["wo"].clone() for stack in base.model.experts]
    for stack in base.model.experts:
        stack.release()
    assert all(torch.equal(stack.weights["wo"], weight) for stack, weight in zip(base.model.experts, before, strict=True))


def test_files_are_written_once_and_again_where_they_are_not_what_they_should_be(checkpoint, tmp_path):
    base = read_base(checkpoint, cache_dir=tmp_path)
    written = files(tmp_path)
    assert len(written) == len(base.model.experts)
    read_base(checkpoint, cache_dir=tmp_path)
    assert files(tmp_path) == written
    cut, other = sorted(written)[:2]
    cut.write_bytes(cut.read_bytes()[:-1])
    other.write_bytes(b"\x80\x04" + other.read_bytes()[2:])
    assert_equal_experts(read_base(checkpoint, cache_dir=tmp_path).model.experts, read_base(checkpoint).model.experts)
    assert files(tmp_path).keys() == written.keys()


def test_a_layer_is_safetensors_with_hidden_units_first(tmp_path):
    matrices = {name: torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) for name, shape in SHAPES.items()}
    path = tmp_path / "layer.safetensors"
    write_layer(path, 3, SHAPES, torch.float32, lambda name, expert: matrices[name][expert])
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("wi"), matrices["wi"])
        assert torch.equal(file.get_tensor("wo.hidden_first"), matrices["wo"].transpose(1, 2))
    assert map_layer(path, 2, SHAPES, torch.float32) is None
    assert map_layer(path, 3, SHAPES, torch.bfloat16) is None
    assert map_layer(tmp_path / "absent", 3, SHAPES, torch.float32) is None


def test_a_value_that_is_not_finite_is_refused_and_leaves_no_file(tmp_path):
    def read(name: str, expert: int) -> torch.Tensor:
        return torch.full(SHAPES[name], float("nan") if (name, expert) == ("wo", 2) else 0.0)

    with pytest.raises(CheckpointError, match="wo of expert 2 holds NaN"):
        write_layer(tmp_path / "layer.safetensors", 3, SHAPES, torch.float32, read)
    assert not list(tmp_path.iterdir())
