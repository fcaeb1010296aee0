"""Counting, alignment and merge rules on a pico model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.core.merging.errors import OptionError
from services.core.merging.values import ExpertForm, LayerPlan, MergePlan
from services.model.alignment import align
from services.model.checkpoint import BaseModel, read_base
from services.model.families.base import ExpertStack
from services.model.greedy import greedy
from services.model.merges import merge_method, merge_methods
from services.model.merging import merged_experts
from services.model.recorder import CountingRecorder
from tests.unit.pico import write_pico_checkpoint

PROMPTS = [[5, 9, 11, 1], [7, 1], [20, 21, 22, 23, 24, 25, 26, 1], [3, 4, 1]]
TARGETS = [[8, 9, 1], [10, 11, 12, 13, 1], [1], [14, 15, 1]]
PAIRS = LayerPlan(((0, 5), (2, 1, 7), (3,), (6, 4)), ((0.75, 0.25), (0.5, 0.25, 0.25), (1.0,), (1.0, 0.0)))


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    return read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")))


def make_plan(base: BaseModel, layer: LayerPlan = PAIRS, method: str = "m-smoe") -> MergePlan:
    return MergePlan(base.base_id, method, (layer,) * len(base.model.experts))


def logits(model):
    with torch.no_grad():
        return model.teacher_forced(PROMPTS, TARGETS)


def shuffled(base: BaseModel, seed: int = 0) -> BaseModel:
    """The same functions with the hidden units of every expert in another order."""
    generator = torch.Generator().manual_seed(seed)
    experts = []
    for stack in base.model.experts:
        orders = [torch.randperm(stack.weights["wi"].shape[1], generator=generator) for _ in range(stack.num_kept)]
        wi = torch.stack([weight[order] for weight, order in zip(stack.weights["wi"], orders, strict=True)])
        wo = torch.stack([weight[:, order] for weight, order in zip(stack.weights["wo"], orders, strict=True)])
        experts.append(ExpertStack({"wi": wi, "wo": wo}, stack.index_map))
    return replace(base, model=base.model.with_experts(experts))


def duplicated(base: BaseModel) -> BaseModel:
    """Every expert a copy of expert 0 of its layer."""
    experts = [
        ExpertStack({name: weight[:1].expand_as(weight).clone() for name, weight in stack.weights.items()}, stack.index_map)
        for stack in base.model.experts
    ]
    return replace(base, model=base.model.with_experts(experts))


def test_counts_sum_exactly_to_tokens_times_top_k(base):
    recorder = CountingRecorder(base.model.shape)
    base.model.teacher_forced(PROMPTS, TARGETS, recorder)
    counts = recorder.take()
    assert counts.sum(axis=1).tolist() == [17, 17, 12, 12]
    assert counts.shape == (4, 8)
    assert recorder.take().sum() == 0


def test_generation_counts_every_prompt_token_and_every_step(base):
    recorder = CountingRecorder(base.model.shape)
    answers = greedy(base.model, PROMPTS, 6, batch_size=3, recorder=recorder)
    assert recorder.take().sum(axis=1).tolist() == [17, 17, *[sum(map(len, answers))] * 2]


def test_orders_found_once_are_read_back(base, tmp_path):
    aligned = align(base, tmp_path)
    merged_experts(base, aligned, make_plan(base))
    aligned.save()
    again = align(base, tmp_path)
    assert again._orders.keys() == aligned._orders.keys()
    assert all((again.order(0, 0, 5) == aligned.order(0, 0, 5)).tolist())
    assert (np.argsort(again.order(0, 0, 5)) == again.order(0, 5, 0)).all()
    path = next(tmp_path.iterdir())
    path.write_bytes(b"\x80\x04" + path.read_bytes())
    assert not align(base, tmp_path)._orders


def test_a_group_of_one_keeps_its_bytes_and_a_zero_coefficient_counts_for_nothing(base):
    merged = merged_experts(base, align(base), make_plan(base))
    for stack, original in zip(merged, base.model.experts, strict=True):
        assert torch.equal(stack.weights["wi"][2], original.weights["wi"][3])
        torch.testing.assert_close(stack.weights["wo"][3], original.weights["wo"][6])
        assert stack.index_map.tolist() == [0, 1, 1, 2, 3, 0, 3, 1]


def test_coefficients_weigh_the_members(base):
    layer = LayerPlan((tuple(range(8)),), ((1.0, *[0.0] * 7),))
    aligned = align(base)
    weighted = merged_experts(base, aligned, make_plan(base, layer))
    averaged = merged_experts(base, aligned, make_plan(base, layer, "average"))
    torch.testing.assert_close(weighted[0].weights["wi"][0], base.model.experts[0].weights["wi"][0])
    torch.testing.assert_close(averaged[0].weights["wi"][0], aligned.members(0, range(8))["wi"].mean(0))


def test_keeping_every_expert_is_the_base_model_itself(base):
    identity = LayerPlan(tuple((expert,) for expert in range(8)), ((1.0,),) * 8)
    experts = merged_experts(base, align(base), make_plan(base, identity))
    assert all(kept is original for kept, original in zip(experts, base.model.experts, strict=True))


def test_merge_methods_are_found_from_their_files(base):
    assert merge_methods() == ("average", "dominant", "m-smoe")
    with pytest.raises(OptionError, match="m-smoe"):
        merge_method("m-smo")
    with pytest.raises(ValueError, match="forms"):
        merged_experts(base, align(base), make_plan(base, replace(PAIRS, forms=(ExpertForm(4, 48),) * 4)))
