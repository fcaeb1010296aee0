"""MC-SMoE's global choice of dominant experts (arXiv 2310.01334, released code `globally_group`), with an exact count.

The released code keeps every expert strictly above a threshold, so ties shrink the model below its target; here seats are filled
from one sorted list. Layers compete on frequency, which is normalised per layer.
"""

from __future__ import annotations

import numpy as np

from services.core.merging.values import Frequencies


def slot_order(frequencies: Frequencies, floor: int) -> list[int]:
    """All experts of all layers but the `floor` most used of each, the most used first.

    Ties (never-used experts above all) go by the expert's rank in its layer, then by layer, so that spare seats spread over layers.
    """
    num_layers, num_experts = frequencies.shape
    ranked = -np.sort(-frequencies, axis=1)[:, floor:]
    layers, ranks = np.meshgrid(np.arange(num_layers), np.arange(floor, num_experts), indexing="ij")
    order = np.lexsort((layers.ravel(), ranks.ravel(), -ranked.ravel()))
    return [int(layer) for layer in layers.ravel()[order]]
