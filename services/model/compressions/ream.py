"""REAM (Jha et al., arXiv 2604.04356): the experts of highest REAP saliency each take in up to 16 of their nearest, in turn.

Nearness is the mean of two cosines: of gate-weighted mean outputs, and of gate profiles over tokens. Coefficients go by saliency. Most
groups stay single, and what matters little ends in few groups. Without the paper's recalibration after each layer; hidden units are
aligned by weights, as in every merge here, not by activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import Group, mean_outputs, merged, plan_for, saliency, weighted
from services.model.merges.m_smoe import merge

MAX_TAKEN = 16


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    def grouping(number: int, kept: int) -> Sequence[Group]:
        need = saliency(evidence, number)
        profiles = evidence.layers[number].logits.softmax(1).T.double().numpy()
        near = (_cosines(mean_outputs(evidence, number, by_gates=True)) + _cosines(profiles)) / 2
        return [weighted(members, need) for members in taken(need, near, kept)]

    return merged(evidence, plan_for(evidence, room_bytes, bits, "uniform"), bits, grouping, merge)


def taken(need: NDArray[np.float64], near: NDArray[np.float64], kept: int, most: int = MAX_TAKEN) -> list[list[int]]:
    """Groups, centres first. Where `kept` centres cannot take all in, each may take more."""
    order = np.lexsort((np.arange(len(need)), -need)).tolist()
    centres, free = order[:kept], set(order[kept:])
    most = max(most, -(-len(free) // kept))
    groups = []
    for centre in centres:
        nearest = sorted(free, key=lambda expert: (-near[centre, expert], expert))[:most]
        free.difference_update(nearest)
        groups.append([centre, *nearest])
    return groups


def _cosines(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.maximum(norms, 1e-12)
    cosines: NDArray[np.float64] = unit @ unit.T
    return cosines
