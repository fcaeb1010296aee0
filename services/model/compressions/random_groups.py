"""A control: random groups of like size in every layer, mean weighted by use. What a method gains over it, its grouping gains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import Group, merged, plan_for, weighted
from services.model.merges.m_smoe import merge

_SEED = 0


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    rng = np.random.default_rng(_SEED)

    def grouping(number: int, kept: int) -> Sequence[Group]:
        order = rng.permutation(evidence.layers[number].num_experts)
        return [weighted(part.tolist(), evidence.usage[number]) for part in np.array_split(order, kept)]

    return merged(evidence, plan_for(evidence, room_bytes, bits, "uniform"), bits, grouping, merge)
