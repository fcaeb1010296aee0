"""4-bit experts laid out for torch's kernel answer as their records unpacked would, up to bfloat16's rounding, for any number of tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from services.model.build import Builder, BuildOptions
from services.model.checkpoint import read_base
from services.model.compensation import packed_experts
from services.model.expert_store import read_experts, read_model
from services.model.families import four_bits
from services.model.families.base import ExpertStack
from services.model.families.layers import ACTIVATIONS, apply_experts, linear, mixed_experts, plain_expert
from services.model.families.packed_weights import PackedWeights
from services.model.memory import non_expert_bytes, unique_bytes
from services.model.packed import PackedMatrix
from services.model.records import RecordLayout
from tests.unit.pico import pico_tasks, write_pico_checkpoint
from tests.unit.serving_builders import copied

LAYOUT = RecordLayout(4, 0, (("wi", 256, 128), ("wo", 128, 256)))
pytestmark = pytest.mark.skipif(
    not four_bits.can_lay_out(RecordLayout(4, 0, (("wi", 512, 512),)), torch.device("cpu")), reason="torch has no kernel for this processor"
)
ONE_LAYER_EACH: Any = {"num_layers": 1, "num_decoder_layers": 1, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
ROUNDING = 2.0**-8  # of a number to bfloat16, at most
PLAIN = plain_expert(ACTIVATIONS["relu"])


@pytest.fixture(autouse=True)
def everything_pays(monkeypatch):
    monkeypatch.setattr(four_bits, "FEWEST_WEIGHTS", 1)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def packed_matrix(rows: int, columns: int, seed: int = 0) -> PackedMatrix:
    """Scales far from each other, and some that are all but zero."""
    weights = drawn(1, rows, columns, seed=seed) * torch.logspace(-4, 1, rows)[:, None]
    return packed_experts(weights, None, 4)[0]


def relative(made: Tensor, exact: Tensor) -> float:
    return float((made - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize(("rows", "columns"), [(64, 64), (16, 128), (80, 192), (768, 3072)])
def test_a_matrix_multiplies_as_its_weights_up_to_the_rounding_of_scales_inputs_and_results(rows, columns):
    matrix = packed_matrix(rows, columns)
    records = RecordLayout.of({"wi": matrix}).record({"wi": matrix}).unsqueeze(0)
    laid_out = four_bits.FourBitForm(RecordLayout.of({"wi": matrix}), records, 0).matrix("wi", 0)
    weights = matrix.unpacked()
    for num_tokens in (*range(1, 41), 64, 100):
        x = drawn(num_tokens, columns, seed=num_tokens)
        exact, made = x @ weights.T, linear(x, laid_out)
        at_most = 2.01 * ROUNDING * (x.abs() @ weights.abs().T) + 1.01 * ROUNDING * exact.abs()
        assert (made - exact).abs().le(at_most).all(), num_tokens
        assert relative(made, exact) < 0.01


@pytest.fixture(scope="module")
def packed() -> PackedWeights:
    """Two experts of 2 bits, three of 4 and one of 16."""
    records = {}
    for bits, num in ((2, 2), (4, 3), (16, 1)):
        shapes = {"wi": (256, 128), "wo": (128, 256)}
        experts = [
            {name: packed_experts(drawn(1, *shape, seed=seed), None, bits)[0] for name, shape in shapes.items()} for seed in range(num)
        ]
        layout = RecordLayout.of(experts[0])
        records[layout] = torch.stack([layout.record(expert) for expert in experts])
    return PackedWeights(records)


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 200])
def test_a_layer_of_several_forms_answers_as_before_and_the_row_beyond_the_last_answers_nothing(packed, num_tokens):
    laid_out = packed.blocked()
    assert [isinstance(form, four_bits.FourBitForm) for form in laid_out.forms] == [False, True, False]
    x, rows = drawn(num_tokens, 128), torch.arange(num_tokens) * 5 % 7
    several, shares = torch.stack([rows, (rows + 3) % 7], 1), torch.full((num_tokens, 2), 0.5)
    with torch.inference_mode():
        made = apply_experts(x, rows, laid_out, PLAIN)
        assert relative(made, apply_experts(x, rows, packed, PLAIN)) < 0.01
        assert not made[rows == 6].any()
        assert relative(mixed_experts(x, several, shares, laid_out, PLAIN), mixed_experts(x, several, shares, packed, PLAIN)) < 0.01


def test_other_forms_small_matrices_and_sizes_that_the_kernel_does_not_take_stay_as_they_are(monkeypatch):
    cpu = torch.device("cpu")
    assert four_bits.can_lay_out(LAYOUT, cpu)
    assert not four_bits.can_lay_out(LAYOUT, torch.device("cuda"))
    for bits, rank, rows, columns in ((3, 0, 128, 128), (8, 0, 128, 128), (4, 1, 128, 128), (4, 0, 128, 96), (4, 0, 100, 128)):
        assert not four_bits.can_lay_out(RecordLayout(bits, rank, (("wi", rows, columns), ("wo", 128, 128))), cpu)
    monkeypatch.setattr(four_bits, "FEWEST_WEIGHTS", 256 * 128 + 1)
    assert not four_bits.can_lay_out(LAYOUT, cpu)


def test_four_and_a_half_bits_a_weight_are_held_and_a_record_is_no_more_to_be_had():
    expert = {"wi": packed_matrix(256, 128), "wo": packed_matrix(128, 256)}
    packed = PackedWeights({LAYOUT: LAYOUT.record(expert).expand(3, -1).clone()})
    laid_out = packed.blocked()
    assert ExpertStack(laid_out, torch.arange(3)).num_bytes() == 3 * 2 * 256 * 128 * 4.5 / 8
    assert (packed.is_blocked, laid_out.is_blocked) == (False, True)
    assert laid_out.blocked().forms == laid_out.forms
    assert (packed.is_laid_out(1), laid_out.is_laid_out(1)) == (False, True)
    assert torch.equal(packed.at(1)[1], LAYOUT.record(expert))
    with pytest.raises(AssertionError, match="laid out"):
        laid_out.at(1)


def test_versions_are_read_to_serve_laid_out_and_again_when_another_version_keeps_the_expert(tmp_path):
    base = read_base(write_pico_checkpoint(tmp_path / "pico", d_model=64, d_ff=64, num_experts=4, **ONE_LAYER_EACH))
    builder = Builder(base, pico_tasks(), tmp_path / "cache")
    weights = sum(layer.num_experts * layer.expert_params for layer in base.model.shape.layers)
    budget_bytes = non_expert_bytes(base.model) + weights * 4 // 8
    first, second = (builder.build({task: 1.0}, budget_bytes, BuildOptions(method="fitted")) for task in ("left", "right"))
    store = copied(builder.store, tmp_path / "served", first.digests | second.digests)
    plain, served = read_model(store, first).model, read_model(store, first, to_serve=True).model
    assert any(stack.is_blocked for stack in served.experts)
    assert unique_bytes(plain) < unique_bytes(served) < 1.1 * unique_bytes(plain)
    updated = served.with_experts(read_experts(store, second, served, first))
    prompts, targets = [[5, 9, 11, 1], [7, 1], [20, 21, 22, 23, 1]], [[8, 9, 1], [10, 1], [1]]
    for model, exact in ((served, plain), (updated, read_model(store, second).model)):
        with torch.no_grad():
            made, known = (each.teacher_forced(prompts, targets) for each in (model, exact))
        assert relative(made, known) < 0.02
