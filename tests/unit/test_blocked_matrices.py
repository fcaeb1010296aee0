"""Matrices laid out for products: the same bits and the same answers, and nothing small, trained or on its way to disk is laid out."""

from __future__ import annotations

import pytest
import torch

from services.model.blob_store import BlobStore
from services.model.build import Builder
from services.model.checkpoint import read_base
from services.model.expert_store import read_experts, read_model
from services.model.families import blocked
from services.model.families.blocked import BlockedStack, blocked_stack, row_of
from services.model.families.layers import ACTIVATIONS, apply_experts, linear, mixed_experts, plain_expert
from services.model.families.switch import SwitchFamily
from services.model.memory import held_bytes, unique_bytes
from tests.unit.pico import pico_tasks, write_pico_checkpoint
from tests.unit.test_switch_family import CPU, PROMPTS, generate, write_pico

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN lays nothing out")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch):
    monkeypatch.setattr(blocked, "FEWEST_WEIGHTS", 1)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    return Builder(read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico"))), pico_tasks(), tmp_path_factory.mktemp("cache"))


def drawn(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_a_matrix_laid_out_multiplies_as_before_and_comes_back_bit_for_bit(dtype, num_tokens):
    matrix, x = drawn(48, 33, dtype=dtype), drawn(num_tokens, 33)
    laid_out = blocked.blocked(matrix)
    assert laid_out.is_mkldnn
    assert torch.equal(laid_out.to_dense(), matrix)
    torch.testing.assert_close(
        linear(x, laid_out), linear(x, matrix), atol=1e-4 if dtype == torch.float32 else 0.1, rtol=1e-5 if dtype == torch.float32 else 0.02
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 3, 40])
def test_a_product_rectified_in_the_same_call_is_to_the_next_what_one_rectified_after_it_is(dtype, num_tokens):
    first, second, x = blocked.blocked(drawn(48, 32, dtype=dtype)), blocked.blocked(drawn(32, 48, dtype=dtype)), drawn(num_tokens, 32)
    assert torch.equal(linear(linear(x, first, ACTIVATIONS["relu"]), second), linear(torch.relu(linear(x, first)), second))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_tokens", [0, 1, 2, 30])
def test_experts_laid_out_give_what_stacked_ones_give(dtype, num_tokens):
    weights = {"wi": drawn(5, 24, 32, dtype=dtype), "wo": drawn(5, 32, 24, dtype=dtype)}
    laid_out = {name: blocked_stack(weight) for name, weight in weights.items()}
    rule, x, rows = plain_expert(ACTIVATIONS["relu"]), drawn(num_tokens, 32), torch.arange(num_tokens) % 4
    shares = torch.full((num_tokens, 2), 0.5)
    atol, rtol = (1e-4, 1e-4) if dtype == torch.float32 else (0.5, 0.05)
    with torch.no_grad():
        torch.testing.assert_close(apply_experts(x, rows, laid_out, rule), apply_experts(x, rows, weights, rule), atol=atol, rtol=rtol)
        both = torch.stack([rows, rows + 1], 1)
        mixed = [mixed_experts(x, both, shares, held, rule) for held in (laid_out, weights)]
    torch.testing.assert_close(*mixed, atol=atol, rtol=rtol)


def test_small_matrices_those_of_other_dtypes_and_those_with_gradients_stay_as_they_are(monkeypatch):
    for matrix in (drawn(8, 8, dtype=torch.float16), drawn(8, 8).requires_grad_()):
        assert blocked.blocked(matrix) is matrix
    monkeypatch.setattr(blocked, "FEWEST_WEIGHTS", 65)
    assert blocked.blocked(small := drawn(8, 8)) is small
    assert not isinstance(blocked_stack(torch.stack([small, small])), BlockedStack)


def test_a_stack_laid_out_is_as_large_as_before_and_takes_part_in_no_operation():
    stack = drawn(3, 8, 8)
    laid_out = blocked_stack(stack)
    assert isinstance(laid_out, BlockedStack)
    assert (laid_out.shape, laid_out.dtype, laid_out.numel()) == (stack.shape, stack.dtype, stack.numel())
    assert torch.equal(row_of(laid_out, 1).to_dense(), stack[1])
    with pytest.raises(NotImplementedError, match="laid out"):
        laid_out + 1


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_laid_out_answers_the_same_and_weighs_the_same(tmp_path, overrides, dtype):
    write_pico(tmp_path, **overrides)
    model = SwitchFamily().read(tmp_path, dtype, CPU)
    laid_out = model.blocked()
    assert any(tensor.is_mkldnn for tensor in laid_out.parameters().values())
    assert all(isinstance(weight, BlockedStack) for stack in laid_out.experts for weight in stack.weights.values())
    assert generate(laid_out, PROMPTS, 8) == generate(model, PROMPTS, 8)
    assert unique_bytes(laid_out) == unique_bytes(model)
    assert held_bytes([laid_out, laid_out.with_experts(laid_out.experts)]) == unique_bytes(model)
    assert laid_out.blocked().experts[0].weights["wi"] is laid_out.experts[0].weights["wi"]


def test_a_version_read_to_serve_is_laid_out_and_its_update_takes_over_what_did_not_change(builder):
    first = builder.build({"left": 1.0}, builder.base.full_bytes * 3 // 4)
    second = builder.build({"right": 1.0}, builder.base.full_bytes * 3 // 4)
    store = BlobStore(builder.store.directory, 1 << 30)
    served = read_model(store, first, to_serve=True).model
    plain = read_model(store, first).model
    assert generate(served, PROMPTS, 6) == generate(plain, PROMPTS, 6)
    updated = served.with_experts(read_experts(store, second, served, first))
    assert all(isinstance(weight, BlockedStack) for stack in updated.experts for weight in stack.weights.values())
    assert generate(updated, PROMPTS, 6) == generate(read_model(store, second).model, PROMPTS, 6)
    assert unique_bytes(updated) == second.model_bytes
    assert held_bytes([served, updated]) < first.model_bytes + second.model_bytes
    assert 0 < len(matrices_of(updated) & matrices_of(served)) < len(matrices_of(served))


def matrices_of(model):
    stacks = [weight for stack in model.experts for weight in stack.weights.values()]
    return {id(matrix) for stack in stacks if isinstance(stack, BlockedStack) for matrix in stack.matrices}
