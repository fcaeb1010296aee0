"""Experts fitted to fewer bits and hidden units on the tokens they get."""

from __future__ import annotations

import pytest
import torch

from services.core.merging.values import ExpertForm
from services.model.alignment import hidden_axis
from services.model.evidence import ExpertTokens, outputs
from services.model.families.base import ExpertStack
from services.model.families.layers import ACTIVATIONS, Expert, gated_expert, plain_expert
from services.model.fitting import LayerFitter, form_bytes, least_squares
from services.model.narrowing import units_by_need

NUM_EXPERTS, D_MODEL, D_FF = 3, 16, 24
PLAIN = plain_expert(ACTIVATIONS["relu"])
GATED = gated_expert(ACTIVATIONS["silu"])


def make_stack(*names: str, seed: int = 0) -> ExpertStack:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(NUM_EXPERTS, D_FF, D_MODEL, generator=generator) for name in names}
    return ExpertStack({**weights, "wo": torch.randn(NUM_EXPERTS, D_MODEL, D_FF, generator=generator)}, torch.arange(NUM_EXPERTS))


def make_tokens(num_own: int = 150, seed: int = 1) -> list[ExpertTokens]:
    generator = torch.Generator().manual_seed(seed)
    return [
        ExpertTokens(torch.randn(num_own + 20, D_MODEL, generator=generator), torch.rand(num_own + 20, generator=generator), num_own)
        for _ in range(NUM_EXPERTS)
    ]


def make_fitter(rule: Expert = PLAIN, stack: ExpertStack | None = None) -> LayerFitter:
    return LayerFitter(rule, stack or make_stack("wi"), make_tokens(), torch.bfloat16)


def total(fitted) -> float:
    return float(sum(one.error for one in fitted))


@pytest.mark.parametrize(("rule", "names"), [(PLAIN, ("wi",)), (GATED, ("gate", "up"))])
def test_errors_fall_with_bits_and_with_hidden_units_for_plain_and_gated_experts(rule, names):
    fitter = make_fitter(rule, make_stack(*names))
    dropped = sum(fitter.dropped(expert) for expert in range(NUM_EXPERTS))
    by_bits = [total(fitter.fitted(range(NUM_EXPERTS), ExpertForm(bits, D_FF))) for bits in (1, 2, 3, 4, 8)]
    by_units = [total(fitter.fitted(range(NUM_EXPERTS), ExpertForm(4, units))) for units in (3, 6, 12, 18, 24)]
    assert [dropped, *by_bits] == sorted([dropped, *by_bits], reverse=True)
    assert [dropped, *by_units] == sorted([dropped, *by_units], reverse=True)


def test_an_error_is_what_the_packed_expert_makes_of_its_own_tokens():
    fitter, stack, tokens = make_fitter(), make_stack("wi"), make_tokens()
    fitted = fitter.fitted([1], ExpertForm(2, 12))[0]
    own = tokens[1].own
    exact = outputs(PLAIN, {name: weight[1] for name, weight in stack.weights.items()}, own.inputs)[0]
    made = outputs(PLAIN, fitted.weights(), own.inputs)[0]
    assert fitted.error == pytest.approx(float(((made - exact).square().sum(1) * own.weights).sum()), rel=1e-5)
    assert fitter.sent_to(1, fitted) == pytest.approx(fitted.error, rel=1e-5)


def test_units_that_another_can_stand_in_for_go_first_at_no_cost():
    stack = make_stack("wi")
    stack.weights["wi"][:, D_FF // 2 :] = 2 * stack.weights["wi"][:, : D_FF // 2]  # relu(2x) = 2 relu(x)
    fitter = make_fitter(stack=stack)
    assert total(fitter.fitted(range(NUM_EXPERTS), ExpertForm(16, D_FF // 2))) < 1e-3 * sum(map(fitter.dropped, range(NUM_EXPERTS)))


def test_solving_the_output_projection_is_never_worse_than_what_was_there():
    generator = torch.Generator().manual_seed(3)
    for num_tokens in (4, 40, 400):
        hidden, targets = torch.randn(num_tokens, D_FF, generator=generator), torch.randn(num_tokens, D_MODEL, generator=generator)
        weights, prior = torch.rand(num_tokens, generator=generator), torch.randn(D_MODEL, D_FF, generator=generator)
        solved = least_squares(hidden, targets, weights, prior)
        errors = [float(((hidden @ out.T - targets).square().sum(1) * weights).sum()) for out in (solved, prior)]
        assert errors[0] <= errors[1]


def test_units_are_ordered_by_what_the_others_cannot_make_up_for():
    out = torch.ones(1, 1, 3) * torch.tensor([3.0, 1.0, 2.0])
    assert units_by_need(out, torch.eye(3)[None]).tolist() == [[0, 2, 1]]
    twins = torch.tensor([[1.0, 0.999, 0.0], [0.999, 1.0, 0.0], [0.0, 0.0, 1.0]])[None]
    assert units_by_need(torch.ones(1, 1, 3), twins)[0, 2] != 2


def test_bytes_of_a_form_are_those_of_the_packed_expert():
    fitter, stack = make_fitter(), make_stack("wi")
    for form in (ExpertForm(1, 24), ExpertForm(3, 5), ExpertForm(2, 24, 2), ExpertForm(16, 7)):
        assert fitter.fitted([0], form)[0].num_bytes == form_bytes(stack, form)
    assert form_bytes(stack, ExpertForm(0, 0)) == 0
    assert form_bytes(stack, ExpertForm(16, 24)) == stack.num_bytes() // NUM_EXPERTS // 2
    with pytest.raises(ValueError, match="24 units"):
        fitter.fitted([0], ExpertForm(2, 25))


def test_the_order_of_hidden_units_changes_nothing_at_sixteen_bits():
    stack = make_stack("wi")
    order = torch.randperm(D_FF, generator=torch.Generator().manual_seed(5))
    moved = ExpertStack({name: weight.index_select(hidden_axis(name), order) for name, weight in stack.weights.items()}, stack.index_map)
    for units in (9, 24):
        plain, other = (make_fitter(stack=one).fitted([0, 2], ExpertForm(16, units)) for one in (stack, moved))
        assert total(plain) == pytest.approx(total(other), rel=1e-3, abs=1e-6)
