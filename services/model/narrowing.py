"""Which hidden units of an expert can go first: those whose work the others can best take over.

Structured optimal brain surgeon (Hassibi and Stork 1993; for whole columns as in Kurtić et al., ZipLM, arXiv 2302.04089): removing unit j
and refitting what leads out of the others costs ‖W_j‖² / [H⁻¹]_jj, H the second moments of the hidden units over the expert's tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 64  # units that go in one round are chosen by one set of costs


def units_by_need(out: Tensor, moments: Tensor) -> Tensor:
    """Hidden units of each expert, most needed first: (E, d_ff) int64.

    `out` (E, d_model, d_ff); `moments` (E, d_ff, d_ff), positive definite.
    """
    num_experts, _, num_units = out.shape
    weights, inverse = out.double(), torch.linalg.inv(moments.double())
    gone = torch.zeros(num_experts, num_units, dtype=torch.bool)
    removed: list[Tensor] = []
    at_once = max(1, num_units // _ROUNDS)
    for start in range(0, num_units, at_once):
        count = min(at_once, num_units - start)
        costs = weights.square().sum(1) / torch.diagonal(inverse, dim1=1, dim2=2).clamp(min=1e-30)
        units = costs.masked_fill(gone, float("inf")).topk(count, dim=1, largest=False).indices
        removed.append(units)
        gone.scatter_(1, units, True)
        if start + count < num_units:
            weights, inverse = _without(weights, inverse, units)
    return torch.cat(removed, dim=1).flip(1)


def _without(weights: Tensor, inverse: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """The refitted weights and the inverse moments once `units` (E, count) are gone."""
    rows = inverse.gather(1, units.unsqueeze(2).expand(-1, -1, inverse.shape[2]))
    corner = rows.gather(2, units.unsqueeze(1).expand(-1, units.shape[1], -1))
    solved = torch.linalg.solve(corner, rows)
    leaving = weights.gather(2, units.unsqueeze(1).expand(-1, weights.shape[1], -1))
    inverse = inverse - rows.transpose(1, 2) @ solved
    index = units.unsqueeze(2).expand(-1, -1, inverse.shape[2])
    inverse = inverse.scatter(1, index, 0.0).scatter(2, index.transpose(1, 2), 0.0)
    return weights - leaving @ solved, inverse
