"""Matrices in few bits: what packing loses, what searching and compensating save, and the bytes it takes."""

from __future__ import annotations

import pytest
import torch

from services.model.blob_store import BlobStore
from services.model.compensation import packed_experts
from services.model.packed import PackedMatrix, packed_bytes


def weights(num_experts: int = 2, rows: int = 24, columns: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_experts, rows, columns, generator=torch.Generator().manual_seed(seed))


def correlated_inputs(num_tokens: int = 400, columns: int = 96, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, columns, generator=generator)
    return torch.randn(num_tokens, 12, generator=generator) @ mixing + 0.1 * torch.randn(num_tokens, columns, generator=generator)


def moments_of(inputs: torch.Tensor, num_experts: int = 2) -> torch.Tensor:
    moments = inputs.T @ inputs
    return (moments + 0.01 * moments.diagonal().mean() * torch.eye(len(moments))).expand(num_experts, -1, -1)


def output_error(exact: torch.Tensor, packed: list[PackedMatrix], inputs: torch.Tensor) -> float:
    return sum(float(((matrix.unpacked() - one) @ inputs.T).square().sum()) for matrix, one in zip(packed, exact, strict=True))


@pytest.mark.parametrize(("bits", "expected"), [(1, 0.363), (2, 0.1188), (3, 0.0374), (4, 0.01154)])
def test_a_gaussian_loses_what_an_even_grid_must_lose(bits, expected):
    """The optimum of an even grid (Max 1960, table II); a scale of each group's own does up to a quarter better."""
    exact = weights(1, 256, 256)
    (packed,) = packed_experts(exact, None, bits)
    assert 0.75 * expected < float((packed.unpacked() - exact[0]).square().mean()) < 1.02 * expected


def test_the_scale_search_beats_the_full_range():
    exact = weights(1, 64, 64)[0]
    (packed,) = packed_experts(exact[None], None, 2)
    scale = exact.abs().amax(1, keepdim=True) / 3
    plain = (2 * ((exact / scale + 3) / 2).round().clamp(0, 3) - 3) * scale
    assert float((packed.unpacked() - exact).square().sum()) < 0.8 * float((plain - exact).square().sum())


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_compensation_saves_outputs_on_the_inputs_it_was_told_of(bits):
    exact, inputs = weights(), correlated_inputs()
    plain = output_error(exact, packed_experts(exact, None, bits), inputs)
    compensated = output_error(exact, packed_experts(exact, moments_of(inputs), bits), inputs)
    assert compensated < 0.6 * plain


def test_a_low_rank_correction_takes_up_the_part_that_matters_most():
    exact, inputs = weights(), correlated_inputs()
    moments = moments_of(inputs)
    errors = [output_error(exact, packed_experts(exact, moments, 1, rank), inputs) for rank in (0, 2, 8)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < 0.5 * errors[1]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8, 16])
@pytest.mark.parametrize("rank", [0, 3])
def test_bytes_are_exactly_codes_scales_and_correction(bits, rank):
    exact = weights(1, 10, 70)
    (packed,) = packed_experts(exact, moments_of(correlated_inputs(columns=70), 1), bits, rank if bits < 16 else 0)
    rank = rank if bits < 16 else 0
    expected = 10 * 70 * 2 if bits == 16 else -(-700 * bits // 8) + 10 * 2 + 4
    assert packed.num_bytes == packed_bytes((10, 70), bits, rank) == expected + 2 * rank * 80
    held = [packed.codes, packed.scales, packed.left, packed.right]
    assert packed.num_bytes - (4 if bits < 16 else 0) == sum(part.numel() * part.element_size() for part in held)


def test_a_packed_matrix_survives_its_blob_to_the_last_bit(tmp_path):
    store = BlobStore(tmp_path, 1 << 20)
    exact, moments = weights(1), moments_of(correlated_inputs(), 1)
    for bits, rank in ((1, 0), (3, 2), (16, 0)):
        (packed,) = packed_experts(exact, moments, bits, rank)
        digest, _ = store.put(packed.tensors("wi"))
        again = PackedMatrix.from_tensors("wi", store.read(digest))
        assert torch.equal(again.unpacked(), packed.unpacked())
        assert (again.bits, again.shape, again.num_bytes) == (packed.bits, packed.shape, packed.num_bytes)
        assert store.put(again.tensors("wi"))[0] == digest


def test_a_written_matrix_with_parts_of_another_size_is_refused():
    (packed,) = packed_experts(weights(1), None, 3)
    tensors = packed.tensors("wi")
    with pytest.raises(ValueError, match=r"'wi'.*3 bits"):
        PackedMatrix.from_tensors("wi", {**tensors, "wi.codes": tensors["wi.codes"][:-1]})
    with pytest.raises(ValueError, match=r"wo\.codes is missing"):
        PackedMatrix.from_tensors("wo", tensors)


def test_matrices_of_zeros_and_of_few_levels_are_kept():
    assert float(packed_experts(torch.zeros(1, 4, 64), None, 2)[0].unpacked().abs().max()) < 1e-9
    levels = torch.tensor([-3.0, -1.0, 1.0, 3.0]).repeat(1, 4, 16)
    torch.testing.assert_close(packed_experts(levels, None, 2)[0].unpacked(), levels[0])
