"""Plain mean of a group's aligned experts, whatever their activations (a baseline of Li et al., ICLR 2024)."""

from __future__ import annotations

from torch import Tensor


def merge(members: Tensor, coefficients: Tensor) -> Tensor:
    return members.mean(0)
