"""Rounds the matrices of a layer's experts to few bits so that their *outputs* change least, given the inputs each expert gets.

GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323): columns are rounded in turn, and the error of each is made up for by the columns still
to come, by the inverse of the inputs' second moments. Scales are found before a group of columns is rounded, by least squares over
shrunk ranges. A low-rank correction takes up what rounding left, weighted by the same moments (LQER, arXiv 2402.02446).
"""

from __future__ import annotations

import torch
from torch import Tensor

from services.model.packed import (
    GROUP_WEIGHTS,
    STORED_BITS,
    PackedMatrix,
    level,
    nearest,
    packed_bits,
    scale_codes,
    scales_of,
)

_SHRINK_FACTORS = tuple(1.0 - 0.04 * step for step in range(20))  # 1.0 to 0.24


def packed_experts(
    weights: Tensor, moments: Tensor | None, bits: int, rank: int = 0, stored: torch.dtype = torch.bfloat16
) -> list[PackedMatrix]:
    """One matrix of each expert, packed. `weights` (E, rows, columns) float32; `moments` (E, columns, columns): Σ x xᵀ, positive definite.

    Without moments each weight goes to its nearest level, and no correction is made (`rank` must be 0).
    """
    if bits >= STORED_BITS:
        none = torch.empty(0, 0, dtype=torch.uint8)
        return [PackedMatrix(bits, _shape(matrix), matrix.to(stored), none, torch.zeros(1)) for matrix in weights]
    top = _tops(weights, bits)
    codes, scales = _plain(weights, bits, top) if moments is None else _compensated(weights, moments, bits, top)
    packed = [
        PackedMatrix(bits, _shape(matrix), packed_bits(code, bits), scale, each.view(1))
        for matrix, code, scale, each in zip(weights, codes, scales, top, strict=True)
    ]
    if rank == 0:
        return packed
    assert moments is not None
    return [_corrected(matrix, exact, moment, rank) for matrix, exact, moment in zip(packed, weights, moments, strict=True)]


def _shape(matrix: Tensor) -> tuple[int, int]:
    return int(matrix.shape[0]), int(matrix.shape[1])


def _tops(weights: Tensor, bits: int) -> Tensor:
    """(E, 1, 1): no scale of a matrix can be larger than this."""
    return (weights.abs().amax((1, 2), keepdim=True) / (2**bits - 1 if bits > 1 else 1)).clamp(min=1e-12)


def _plain(weights: Tensor, bits: int, top: Tensor) -> tuple[Tensor, Tensor]:
    codes, scales = [], []
    for group in torch.split(weights, min(GROUP_WEIGHTS, weights.shape[2]), dim=2):
        scale = _searched(group, torch.ones_like(group[:, :1]), bits, top)
        codes.append(nearest(group, scales_of(scale, top), bits))
        scales.append(scale)
    return torch.cat(codes, dim=2), torch.cat(scales, dim=2)


def _compensated(weights: Tensor, moments: Tensor, bits: int, top: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (E, rows, columns) and scale codes (E, rows, groups)."""
    upper = torch.linalg.cholesky(torch.linalg.inv(moments.double()), upper=True).float()
    left = weights.clone()
    codes, scales = torch.zeros_like(left), []
    width = min(GROUP_WEIGHTS, left.shape[2])
    for start in range(0, left.shape[2], width):
        end = min(start + width, left.shape[2])
        block = upper[:, start:end, start:end]
        importance = torch.diagonal(block, dim1=1, dim2=2).square().reciprocal().unsqueeze(1)
        scale = _searched(left[:, :, start:end], importance, bits, top)
        codes[:, :, start:end], errors = _block(left[:, :, start:end].clone(), block, scales_of(scale, top), bits)
        left[:, :, end:] -= errors @ upper[:, start:end, end:]
        scales.append(scale)
    return codes, torch.cat(scales, dim=2)


def _block(left: Tensor, upper: Tensor, scales: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Rounds the columns of one group in turn; codes, and the errors that later groups make up for."""
    codes, errors = torch.zeros_like(left), torch.zeros_like(left)
    for column in range(left.shape[2]):
        codes[:, :, column] = nearest(left[:, :, column], scales[:, :, 0], bits)
        miss = left[:, :, column] - level(codes[:, :, column], bits) * scales[:, :, 0]
        errors[:, :, column] = miss / upper[:, column, column, None]
        left[:, :, column + 1 :] -= errors[:, :, column, None] * upper[:, None, column, column + 1 :]
    return codes, errors


def _searched(weights: Tensor, importance: Tensor, bits: int, top: Tensor) -> Tensor:
    """(E, rows, 1) scale codes with the least weighted square error."""
    if bits == 1:
        mean = (weights.abs() * importance).sum(2, keepdim=True) / importance.sum(2, keepdim=True)
        return scale_codes(mean, top)
    largest = weights.abs().amax(2, keepdim=True) / (2**bits - 1)
    best = scale_codes(largest, top)
    least = torch.full_like(largest, float("inf"))
    for factor in _SHRINK_FACTORS:
        tried = scale_codes(largest * factor, top)
        scales = scales_of(tried, top)
        miss = level(nearest(weights, scales, bits), bits) * scales - weights
        error = (miss.square() * importance).sum(2, keepdim=True)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(least, error)
    return best


def _corrected(packed: PackedMatrix, exact: Tensor, moments: Tensor, rank: int) -> PackedMatrix:
    left, right = low_rank(exact - packed.unpacked(), moments, rank)
    return PackedMatrix(packed.bits, packed.shape, packed.codes, packed.scales, packed.top, left.half(), right.half())


def low_rank(matrix: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """left (rows, rank) and right (rank, columns) with the least Σ‖(matrix - left·right) x‖²: the SVD of matrix · moments^½."""
    root = torch.linalg.cholesky(moments.double())
    u, s, vh = torch.linalg.svd(matrix.double() @ root, full_matrices=False)
    kept = s[:rank].sqrt()
    right = torch.linalg.solve_triangular(root, kept[:, None] * vh[:rank], upper=False, left=False)
    return (u[:, :rank] * kept).float(), right.float()
