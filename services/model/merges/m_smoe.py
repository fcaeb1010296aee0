"""M-SMoE (Li et al., ICLR 2024, eq. 2): the mean of a group's aligned experts, weighted by how often each was activated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def merge(members: Tensor, coefficients: Tensor) -> Tensor:
    merged: Tensor = torch.tensordot(coefficients.to(members), members, dims=1)  # type: ignore[no-untyped-call,unused-ignore]
    return merged


def shares(coefficients: Sequence[float]) -> Sequence[float]:
    return coefficients
