"""Tokens through experts: every way of multiplying gives what one expert at a time gives, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from services.model.families import layers
from services.model.families.layers import apply_experts, gated_expert, linear, mixed_experts, plain_expert

NUM_EXPERTS = 6
RULES = {
    "plain": (plain_expert(torch.relu), ("wi",)),
    "gated": (gated_expert(torch.nn.functional.silu), ("gate", "up")),
}


def make_weights(names, d_model, d_ff, dtype):
    weights = {name: torch.randn(NUM_EXPERTS, d_ff, d_model).to(dtype) for name in names}
    return {name: weight.requires_grad_() for name, weight in {**weights, "wo": torch.randn(NUM_EXPERTS, d_model, d_ff).to(dtype)}.items()}


def one_at_a_time(x, rows, weights, rule):
    def product(row):
        return lambda part, name, activation: linear(part, weights[name][row], activation)

    return torch.cat([rule(product(row), x[n : n + 1]) for n, row in enumerate(rows.tolist())])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("d_model", "d_ff"), [pytest.param(32, 24, id="grouped"), pytest.param(33, 41, id="rows-of-odd-bytes")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [0, 1, 40])
def test_sorted_tokens_give_values_and_gradients_of_single_ones(rule, d_model, d_ff, dtype, num_tokens):
    torch.manual_seed(0)
    expert, names = RULES[rule]
    weights = make_weights(names, d_model, d_ff, dtype)
    x = torch.randn(num_tokens, d_model, requires_grad=True)
    rows = torch.randint(0, NUM_EXPERTS - 1, (num_tokens,))  # the last expert gets none
    leaves = [x, *weights.values()]
    made = apply_experts(x, rows, weights, expert)
    assert made.dtype == torch.float32
    if num_tokens == 0:
        assert made.shape == (0, d_model)
        return
    expected = one_at_a_time(x, rows, weights, expert)
    grads = torch.autograd.grad(made.square().sum(), leaves)
    torch.testing.assert_close(made, expected, atol=1e-4 if dtype == torch.float32 else 0.5, rtol=1e-4 if dtype == torch.float32 else 0.05)
    for grad, known in zip(grads, torch.autograd.grad(expected.square().sum(), leaves), strict=True):
        torch.testing.assert_close(grad.float() / known.float().abs().max(), known.float() / known.float().abs().max(), atol=0.05, rtol=0)


def test_few_tokens_are_gathered_and_give_the_same(monkeypatch):
    torch.manual_seed(0)
    expert, names = RULES["gated"]
    weights, x, rows = make_weights(names, 32, 24, torch.float32), torch.randn(9, 32), torch.randint(0, NUM_EXPERTS, (9,))
    with torch.no_grad():
        gathered = apply_experts(x, rows, weights, expert)
        monkeypatch.setattr(layers, "GATHER_PARAMS", 0)
        grouped = apply_experts(x, rows, weights, expert)
    torch.testing.assert_close(gathered, grouped, atol=1e-4, rtol=1e-4)
    assert not torch.equal(gathered, torch.zeros_like(gathered))


@pytest.mark.parametrize("gather_params", [0, 1 << 30])
def test_shares_of_experts_in_one_group_add_and_it_runs_once(monkeypatch, gather_params):
    monkeypatch.setattr(layers, "GATHER_PARAMS", gather_params)
    torch.manual_seed(0)
    x, weights = torch.randn(6, 4), {"wi": torch.randn(3, 8, 4), "wo": torch.randn(3, 4, 8)}
    rows, shares = torch.tensor([[0, 0, 2], [1, 2, 1], [2, 2, 2], [0, 1, 2], [1, 0, 0], [2, 1, 1]]), torch.rand(6, 3)
    seen = []

    def counted(product, tokens):
        seen.append(tokens.shape[0])
        return plain_expert(torch.relu)(product, tokens)

    with torch.no_grad():
        mixed = mixed_experts(x, rows, shares, weights, counted)
        single = [apply_experts(x, rows[:, place], weights, plain_expert(torch.relu)) for place in range(3)]
    torch.testing.assert_close(mixed, sum(part * shares[:, place, None] for place, part in enumerate(single)))
    assert sum(seen) == 12
