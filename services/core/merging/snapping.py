"""Snaps shares to a grid by largest remainder, so that near-equal inputs give equal plans, requests and cache keys."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def largest_remainder(weights: NDArray[np.float64], steps: int) -> NDArray[np.int64]:
    """Non-negative integers that sum to `steps` and are nearest to `weights` in proportion; ties go to the lower index.

    Weights that are all zero share the steps evenly.
    """
    total = float(weights.sum())
    shares = weights / total if total > 0 else np.full(len(weights), 1 / len(weights))
    exact = shares * steps
    floors = np.floor(exact + 1e-9).astype(np.int64)
    # Rounded so that remainders equal on paper stay equal in floating point and the index decides.
    remainders = np.round(exact - floors, 9)
    order = np.lexsort((np.arange(len(weights)), -remainders))
    floors[order[: steps - int(floors.sum())]] += 1
    return floors
