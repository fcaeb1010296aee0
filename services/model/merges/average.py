"""Plain mean of a group's aligned experts, whatever their activations (a baseline of Li et al., ICLR 2024)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def merge(members: Tensor, coefficients: Tensor) -> Tensor:
    return members.mean(0)


def shares(coefficients: Sequence[float]) -> Sequence[float]:
    return [1 / len(coefficients)] * len(coefficients)
