"""Packed experts answer as the same experts unpacked would, and a record holds exactly the bytes that its form takes."""

from __future__ import annotations

import pytest
import torch

from services.model.families.base import ExpertStack
from services.model.families.layers import ACTIVATIONS, apply_experts, gated_expert, mixed_experts, plain_expert
from services.model.families.packed_weights import PackedForm, PackedWeights
from services.model.records import RecordLayout
from tests.unit.packed_builders import D_FF, D_MODEL, FORMS, make_expert, make_packed

PLAIN = plain_expert(ACTIVATIONS["relu"])
FULL = {"wi": (D_FF, D_MODEL), "wo": (D_MODEL, D_FF)}


@pytest.mark.parametrize(("bits", "units", "rank"), [(1, 3, 0), (2, 48, 2), (3, 5, 0), (4, 130, 1), (5, 7, 0), (8, 64, 0), (16, 24, 0)])
@pytest.mark.parametrize("d_model", [9, 32, 200])
def test_many_records_unpack_to_the_very_matrices_that_were_packed(bits, units, rank, d_model):
    experts = [make_expert(bits, units, rank, seed=seed, d_model=d_model, names=("gate", "up")) for seed in range(3)]
    layout = RecordLayout.of(experts[0])
    records = torch.stack([layout.record(expert) for expert in experts])
    for rows in ([2, 0, 2, 1], [1]):
        unpacked = PackedForm(layout, records, 0).unpacked(torch.tensor(rows))
        for name in ("gate", "up", "wo"):
            for place, row in enumerate(rows):
                exact = experts[row][name].unpacked()
                torch.testing.assert_close(unpacked[name][place], exact, rtol=0, atol=1e-6 if rank else 0)
    assert records.numel() == sum(matrix.num_bytes for expert in experts for matrix in expert.values())
    assert RecordLayout.parse(layout.name) == layout
    assert all(layout.problem(record) is None for record in records)


@pytest.mark.parametrize("num_tokens", [1, 5, 60, 3000])
def test_packed_experts_answer_as_dense_ones_and_the_row_beyond_the_last_answers_nothing(num_tokens):
    packed, dense = make_packed()
    generator = torch.Generator().manual_seed(num_tokens)
    x = torch.randn(num_tokens, D_MODEL, generator=generator)
    rows = torch.randint(0, packed.num_kept + 1, (num_tokens,), generator=generator)
    with torch.inference_mode():
        made = apply_experts(x, rows, packed, PLAIN)
        torch.testing.assert_close(made, apply_experts(x, rows, dense, PLAIN), atol=1e-4, rtol=1e-4)
        assert not made[rows == packed.num_kept].any()
        several = torch.randint(0, packed.num_kept + 1, (num_tokens, 3), generator=generator)
        shares = torch.rand(num_tokens, 3, generator=generator)
        mixed = mixed_experts(x, several, shares, packed, PLAIN)
        torch.testing.assert_close(mixed, mixed_experts(x, several, shares, dense, PLAIN), atol=1e-4, rtol=1e-4)


def test_a_layer_that_holds_nothing_answers_nothing():
    x = torch.randn(4, D_MODEL)
    nothing = PackedWeights({})
    assert not apply_experts(x, torch.zeros(4, dtype=torch.int64), nothing, PLAIN).any()
    stack = ExpertStack(nothing, torch.zeros(8, dtype=torch.int64))
    assert (stack.num_kept, stack.num_bytes(), stack.is_packed) == (0, 0, True)


def test_bytes_of_packed_experts_are_those_of_their_records():
    packed, _ = make_packed()
    stack = ExpertStack(packed, torch.zeros(8, dtype=torch.int64))
    assert stack.num_kept == sum(num_experts for *_, num_experts in FORMS)
    assert stack.num_bytes() == sum(layout.num_bytes for layout, _ in map(packed.at, range(packed.num_kept)))


def test_gated_experts_of_three_matrices_run_packed_too():
    expert = make_expert(4, 24, names=("gate", "up"))
    layout = RecordLayout.of(expert)
    packed = PackedWeights({layout: layout.record(expert).unsqueeze(0)})
    x = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    rule = gated_expert(ACTIVATIONS["silu"])

    def product(part, name, activation):
        made = part @ expert[name].unpacked().T
        return made if activation is None else activation(made)

    with torch.inference_mode():
        exact = rule(product, x)
        torch.testing.assert_close(apply_experts(x, torch.zeros(3, dtype=torch.int64), packed, rule), exact, atol=1e-4, rtol=1e-4)


def test_experts_may_be_narrower_than_the_model_says_and_nothing_else():
    packed, dense = make_packed()
    stack = ExpertStack(packed, torch.zeros(8, dtype=torch.int64))
    assert stack.shapes_problem(FULL) is None
    assert ExpertStack(dense, stack.index_map).shapes_problem(FULL) is None
    for other in (
        {"wi": (16, D_MODEL), "wo": (D_MODEL, 16)},
        {"wi": (D_FF, 16), "wo": (16, D_FF)},
        {**FULL, "up": (D_FF, D_MODEL)},
        {"up": (D_FF, D_MODEL), "wo": (D_MODEL, D_FF)},
    ):
        assert stack.shapes_problem(other) is not None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "0bit-wi=1x1",
        "9bit-wi=1x1",
        "16bit-wi=1x1",
        "2bit-float16-wi=1x1",
        "16bit-float16-rank2-wi=4x4",
        "2bit",
        "2bit-wi=0x4",
        "2bit-wi=04x4",
        "2bit-wo=4x4-wi=4x4",
        "2bit-wi=4x4-wi=4x4",
        "2bit-wi=4x4 ",
        "2bit-wi=9999999x9999999",
        "2bit-rank0-wi=4x4",
    ],
)
def test_names_that_are_not_of_a_packed_expert_are_refused(name):
    with pytest.raises(ValueError, match=r"packed expert|16 bits"):
        RecordLayout.parse(name)


def test_records_from_outside_are_looked_at_before_they_are_held():
    expert = make_expert(2, 16, 1)
    layout = RecordLayout.of(expert)
    record = layout.record(expert)
    assert "takes" in str(layout.problem(record[:-1]))
    assert "takes" in str(layout.problem(record.float()))
    for at, value in ((0, float("nan")), (4, float("inf"))):
        broken = record.clone()
        broken[at : at + 4] = torch.tensor([value]).view(torch.uint8)
        assert layout.problem(broken) is not None
    negative = record.clone()
    negative[:4] = torch.tensor([-1.0]).view(torch.uint8)
    assert "below 0" in str(layout.problem(negative))
    factor = record.clone()
    factor[-2:] = torch.tensor([float("inf")], dtype=torch.float16).view(torch.uint8)
    assert "NaN" in str(layout.problem(factor))
    with pytest.raises(ValueError, match="bytes each"):
        PackedForm(layout, record[:-1].unsqueeze(0), 0)
