"""Rounding experts to few bits, and the bytes it takes."""

from __future__ import annotations

import pytest
import torch

from services.model.checkpoint import read_base
from services.model.memory import unique_bytes
from services.model.quantise import bits_for_budget, bits_per_weight, quantised, quantised_bytes, rounded, zeroed
from tests.unit.pico import write_pico_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")), "bfloat16").model


def relative_error(weight: torch.Tensor, bits: int) -> float:
    return float((rounded(weight, bits) - weight).square().sum() / weight.square().sum())


def test_each_bit_less_costs_more_error():
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = [relative_error(weight, bits) for bits in range(8, 0, -1)]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4
    assert 0.07 < errors[6] < 0.14  # Gaussian at 4 levels: 0.1175 (Max 1960); a group's own range and offset do a little better
    assert 0.3 < errors[7] < 0.4  # 1 - 2/pi = 0.363 for signs of a Gaussian


def test_the_scale_search_beats_the_full_range():
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    low, high = weight.aminmax(dim=1, keepdim=True)
    plain = ((weight - low) / (high - low) * 3).round() / 3 * (high - low) + low
    assert relative_error(weight, 2) < 0.9 * float((plain - weight).square().sum() / weight.square().sum())


def test_what_few_levels_can_hold_is_kept():
    levels = torch.tensor([-1.0, -0.5, 0.0, 0.5]).repeat(4, 8)
    torch.testing.assert_close(rounded(levels, 2), levels, atol=1e-3, rtol=0)
    signs = torch.tensor([0.25, -0.25]).repeat(3, 16)
    torch.testing.assert_close(rounded(signs, 1), signs)
    assert not rounded(torch.zeros(2, 32), 3).any()


def test_rows_that_do_not_fill_a_group_are_rounded_too():
    weight = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
    for bits in (1, 4):
        near = rounded(weight, bits)
        assert near.shape == weight.shape
        torch.testing.assert_close(near[:, :32], rounded(weight[:, :32], bits))
        torch.testing.assert_close(near[:, 32:], rounded(weight[:, 32:], bits))


def test_bytes_hold_bits_scales_and_zero_points(model):
    assert bits_per_weight(4) == 5.0
    assert bits_per_weight(4, group_weights=64) == 4.5
    assert bits_per_weight(1) == 1.5
    experts = sum(stack.num_bytes() for stack in model.experts)
    rest = unique_bytes(model) - experts
    num_rows = 4 * 8  # layers x experts
    groups = num_rows * (48 * 1 + 32 * 2)  # wi rows hold one group of 32, wo rows of 48 hold two
    assert quantised_bytes(model, 3) == rest + (experts // 2 * 3 + groups * 32) // 8


def test_the_most_bits_that_fit_are_chosen(model):
    assert bits_for_budget(model, quantised_bytes(model, 3)) == 3
    assert bits_for_budget(model, quantised_bytes(model, 3) - 1) == 2
    assert bits_for_budget(model, quantised_bytes(model, 1) - 1) is None
    assert bits_for_budget(model, 1 << 40) == 8


def test_quantised_models_share_everything_but_the_experts(model):
    few = quantised(model, 3)
    assert few.parameters()["shared"] is model.parameters()["shared"]
    assert few.experts[0].weights["wi"].dtype == torch.bfloat16
    assert not torch.equal(few.experts[0].weights["wi"], model.experts[0].weights["wi"])
    assert not any(weight.any() for stack in zeroed(model).experts for weight in stack.weights.values())
    with pytest.raises(ValueError, match="1 to 8"):
        quantised(model, 9)
