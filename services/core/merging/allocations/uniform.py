"""The same number of experts in every layer, the remainder to the layers of highest entropy (MergeMoE, arXiv 2510.14436, runs uniform)."""

from __future__ import annotations

import numpy as np

from services.core.merging.values import Frequencies


def slot_order(frequencies: Frequencies, floor: int) -> list[int]:
    """Rounds over all layers, in each round the layer with the most even use of its experts first; ties by layer."""
    num_layers, num_experts = frequencies.shape
    logs = np.log(frequencies, out=np.zeros_like(frequencies), where=frequencies > 0)
    entropy = np.round(-(frequencies * logs).sum(axis=1), 9)
    by_entropy = np.lexsort((np.arange(num_layers), -entropy))
    one_round = [int(layer) for layer in by_entropy]
    return one_round * int(num_experts - floor)
