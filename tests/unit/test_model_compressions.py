"""Ways to make experts smaller, all on one pico model: what each must keep, and that none takes more room than it is given."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.core.merging.errors import BudgetError, OptionError
from services.model.checkpoint import BaseModel, read_base
from services.model.compressions import compared_bits, compression, compressions, is_unmerged
from services.model.compressions.ream import taken
from services.model.evidence import Evidence, gather, outputs
from services.model.families.base import OUT, ExpertStack
from services.model.groups import Group, member_targets, original, solved_for_members
from services.model.recovery import Example
from services.model.splicing import spliced
from tests.unit.pico import write_pico_checkpoint
from tests.unit.pico_decoders import write_pico_decoder

MERGING = sorted(set(compressions()) - {"compensated", "rounded", "fitted", "shared-base"})


def make_examples(count: int = 60, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    texts = [(tuple(rng.integers(3, 60, rng.integers(4, 9)).tolist()), tuple(rng.integers(3, 60, 3).tolist())) for _ in range(count)]
    return [Example((*prompt, 1), (*target, 1)) for prompt, target in texts]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    return read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")))


@pytest.fixture(scope="module")
def evidence(base) -> Evidence:
    return gather(base, make_examples())


def duplicated(base: BaseModel) -> BaseModel:
    """Every expert a copy of the first of its layer, its hidden units in another order."""
    generator = torch.Generator().manual_seed(0)
    experts = []
    for stack in base.model.experts:
        orders = [torch.randperm(stack.weights["wi"].shape[1], generator=generator) for _ in range(stack.num_kept)]
        weights = {
            "wi": torch.stack([stack.weights["wi"][0][order] for order in orders]),
            "wo": torch.stack([stack.weights["wo"][0][:, order] for order in orders]),
        }
        experts.append(ExpertStack(weights, stack.index_map))
    return replace(base, model=base.model.with_experts(experts))


def room_for(base: BaseModel, experts_a_layer: int, bits: int = 16) -> int:
    return sum(experts_a_layer * 2 * 32 * 48 * bits // 8 for _ in base.model.experts)


def test_every_file_is_a_compression_and_unknown_names_are_told():
    assert {"m-smoe", "average", "random-groups", "hc-smoe", "reap", "ream", "merge-moe", "pooled", "shared-base", "fitted"} <= set(
        compressions()
    )
    with pytest.raises(OptionError, match="hc-smoe"):
        compression("hc-smo")


@pytest.mark.parametrize("name", compressions())
def test_no_compression_takes_more_room_than_it_is_given_or_says_so(name, base, evidence):
    experts = [layer.num_experts for layer in evidence.layers]
    for bits in compared_bits(name):
        for room in (room_for(base, 3), room_for(base, 1) // 20):
            try:
                made = compression(name)(evidence, room, bits)
            except BudgetError:
                assert name not in ("fitted",)
                continue
            assert made.expert_bytes <= room
            assert [stack.index_map.numel() for stack in made.stacks] == experts
            assert all(int(stack.index_map.max()) < stack.num_kept for stack in made.stacks)
            assert 0 <= evidence.divergence(base.model.with_experts(made.stacks)) < 100


@pytest.mark.parametrize("name", sorted(set(MERGING) - {"reap"}))
def test_copies_of_one_expert_merge_to_it_whatever_the_order_of_their_hidden_units(name, base):
    copies = duplicated(base)
    evidence = gather(copies, make_examples(40))
    made = compression(name)(evidence, room_for(base, 2), 16)
    assert evidence.divergence(copies.model.with_experts(made.stacks)) < 1e-4


@pytest.mark.parametrize("name", MERGING)
def test_room_for_every_expert_changes_no_answer(name, base, evidence):
    made = compression(name)(evidence, room_for(base, 8), 16)
    assert evidence.divergence(base.model.with_experts(made.stacks)) < 1e-4


def test_more_room_never_costs_ours_calibrated_error_worth_speaking_of(base, evidence):
    rooms = [room_for(base, 8) * bits // 16 for bits in (1, 2, 4, 8)]
    moved = [evidence.divergence(base.model.with_experts(compression("fitted")(evidence, room, 0).stacks)) for room in rooms]
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.02 * moved[0]


def test_ours_is_nearer_the_answers_than_the_unmerged_model_quantised_to_the_same_bytes(base, evidence):
    for bits in (1, 2):
        plain = compression("compensated")(evidence, 1 << 40, bits)
        ours = compression("fitted")(evidence, plain.expert_bytes, 0)
        assert ours.expert_bytes <= plain.expert_bytes
        divergences = [evidence.divergence(base.model.with_experts(made.stacks)) for made in (ours, plain)]
        assert divergences[0] < divergences[1]


def test_compensating_beats_rounding_at_the_same_bits(base, evidence):
    for bits in (1, 2, 3):
        moved = {
            name: evidence.divergence(base.model.with_experts(compression(name)(evidence, 1 << 40, bits).stacks))
            for name in ("compensated", "rounded")
        }
        assert moved["compensated"] < moved["rounded"]


def test_a_solved_projection_serves_a_group_never_worse_than_the_averaged_one(evidence):
    solve = solved_for_members(evidence)
    for number, layer in enumerate(evidence.layers):
        group = Group((0, 3, 5), (0.5, 0.25, 0.25))
        aligned = evidence.aligned.members(number, group.members)
        average = {name: torch.tensordot(torch.tensor(group.coefficients), members, dims=1) for name, members in aligned.items()}
        inputs, targets, weights = member_targets(evidence, number, group.members)
        errors = []
        for out in (solve(number, group, average), average[OUT]):
            made = outputs(evidence.rule, {**average, OUT: out}, inputs)[0]
            errors.append(float(((made - targets).square().sum(1) * weights).sum()))
        assert errors[0] <= errors[1]
        assert targets.shape[0] == sum(int((layer.chosen == member).sum()) for member in group.members)


def test_what_the_evidence_holds_is_what_the_layer_adds(base, evidence):
    """Gate times expert, over the recorded inputs, is what the base model computed: a model of recorded parts gives its answers again."""
    layer = evidence.layers[0]
    token = 5
    expert = int(layer.chosen[token, 0])
    gate = layer.logits.softmax(1)[token, expert]
    assert float(layer.gates[token, 0]) == pytest.approx(float(gate), rel=1e-4)
    own = layer.tokens()[expert].own
    assert any(torch.equal(row, layer.inputs[token]) for row in own.inputs)
    assert evidence.divergence(base.model) == pytest.approx(0.0, abs=1e-6)
    assert outputs(evidence.rule, original(layer.stack, expert), layer.inputs[token : token + 1])[1][OUT].shape == (1, 48)


def test_pruned_experts_of_reap_answer_nothing(base, evidence):
    made = compression("reap")(evidence, room_for(base, 3), 16)
    for stack in made.stacks:
        nothing = [row for row in range(stack.num_kept) if not stack.weights["wo"][row].any()]
        assert len(nothing) == 1
        assert int((stack.index_map == nothing[0]).sum()) == 5


def test_centres_take_their_nearest_in_turn_and_no_expert_twice():
    near = np.eye(5)
    near[0, 3] = near[0, 4] = near[1, 3] = 0.9
    groups = taken(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), near, 2, most=2)
    assert groups == [[0, 3, 4], [1, 2]]
    assert sorted(expert for group in taken(np.ones(40), np.zeros((40, 40)), 2, most=16) for expert in group) == list(range(40))


def test_spliced_prompts_are_parts_of_two_and_answered_by_the_model_itself(base):
    real = make_examples(10)
    made = spliced(base.model, real, 8)
    assert len(made) == 8
    assert made == spliced(base.model, real, 8)
    for example in made:
        assert any(example.prompt[:2] == one.prompt[:2] for one in real)
        assert any(example.prompt[-2:] == one.prompt[-2:] for one in real)
        assert 1 <= len(example.target) <= max(len(one.target) for one in real)
    assert spliced(base.model, [Example((3, 1), (4, 1))], 5) == []


def test_experts_of_three_matrices_and_two_choices_a_token_are_made_smaller_too(tmp_path):
    write_pico_decoder(tmp_path, "mixtral")
    base = read_base(tmp_path)
    evidence = gather(base, make_examples(40))
    weights = sum(layer.num_experts * layer.expert_params for layer in base.model.shape.layers)
    assert evidence.layers[0].chosen.shape[1] > 1
    moved = {}
    for name, bits in (("fitted", 0), ("pooled", 16), ("merge-moe", 16), ("m-smoe", 16), ("compensated", 2)):
        made = compression(name)(evidence, weights * 4 // 8, bits)
        assert made.expert_bytes <= weights * 4 // 8
        moved[name] = evidence.divergence(base.model.with_experts(made.stacks))
    assert moved["fitted"] == min(moved.values())


def test_unmerged_arms_have_bytes_of_their_bits_alone():
    assert [name for name in compressions() if is_unmerged(name)] == ["compensated", "rounded"]
