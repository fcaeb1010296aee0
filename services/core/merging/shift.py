"""Activation shift: how far what an edge activates now lies from what its model was built for (JTOM's |f - f'|, Algorithm 2).

The paper leaves the norm open; here it is the mean over MoE layers of the total variation, in [0, 1], taken only over layers with
enough tokens to tell a change from noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.core.merging.values import Counts, Frequencies, normalised


@dataclass(frozen=True, slots=True)
class Shift:
    """`value` is the mean total variation over `layers_counted` of `num_layers` layers; 0.0 when none counted."""

    value: float
    layers_counted: int
    num_layers: int

    @property
    def enough(self) -> bool:
        """Half of the layers had enough tokens: less is no basis for a decision."""
        return self.layers_counted > 0 and 2 * self.layers_counted >= self.num_layers


def variation(one: Frequencies, other: Frequencies) -> NDArray[np.float64]:
    """Total variation by layer, ½ Σ_e |f_e - f'_e|, (num_layers,) in [0, 1]."""
    apart: NDArray[np.float64] = 0.5 * np.abs(one - other).sum(axis=1)
    return apart


def activation_shift(frequencies: Frequencies, reference: Frequencies, counts: Counts, min_tokens: int) -> Shift:
    """Mean over the layers that count of ½ Σ_e |f_e - f'_e|.

    A layer counts with at least `min_tokens` routed tokens in `counts`, and with a reference (an all-zero row is none).
    """
    tokens = counts.sum(axis=1)
    layers = (tokens >= max(min_tokens, 1)) & (reference.sum(axis=1) > 0)
    if not layers.any():
        return Shift(0.0, 0, len(tokens))
    distance = variation(frequencies, reference)
    return Shift(float(distance[layers].mean()), int(layers.sum()), len(tokens))


def noise_shift(num_experts: int, num_tokens: int) -> float:
    """Expected total variation between an unchanged uniform distribution and `num_tokens` draws of it: ½ √(2E / (πn))."""
    return 0.5 * math.sqrt(2 * num_experts / (math.pi * num_tokens))


def excess_between(first: Counts, second: Counts, min_tokens: int) -> float:
    """Total variation between two windows beyond what sampling alone explains, mean over layers with enough tokens in both.

    The share of noise is the normal approximation ½ Σ_e √(2/π · p_e(1 - p_e)(1/n₁ + 1/n₂)) at the pooled frequencies p.
    Infinite when no layer has enough tokens: two windows that cannot be compared do not agree.
    """
    first_tokens, second_tokens = first.sum(axis=1), second.sum(axis=1)
    layers = (first_tokens >= max(min_tokens, 1)) & (second_tokens >= max(min_tokens, 1))
    if not layers.any():
        return math.inf
    one, two = first[layers], second[layers]
    pooled = normalised(one + two)
    rates = 1 / one.sum(axis=1) + 1 / two.sum(axis=1)
    noise = 0.5 * np.sqrt(2 / math.pi * pooled * (1 - pooled) * rates[:, None]).sum(axis=1)
    distance = variation(normalised(one), normalised(two))
    return float((distance - noise).mean())
