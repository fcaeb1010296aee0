"""Route to the dominant: a group's tokens all go to its most needed expert, unchanged. No averaging.

For top-1 routing two experts are never used together, so a mean of both serves neither (REAP, Lasby et al., arXiv 2510.13999, has the
error term); where experts are dense in knowledge, a few per cent of another's weights are noise like a coarse quantiser's.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def merge(members: Tensor, coefficients: Tensor) -> Tensor:
    return members[0]


def shares(coefficients: Sequence[float]) -> Sequence[float]:
    return [1.0] + [0.0] * (len(coefficients) - 1)
