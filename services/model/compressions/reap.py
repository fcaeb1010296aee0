"""REAP (Lasby et al., ICLR 2026, arXiv 2510.13999): experts of least gate-weighted output norm are pruned, equally many in every layer.

The paper takes pruned experts' rows out of the router, so that each token falls to its next choice. Routers are whole here (index maps
are all that a version changes), so the tokens of a pruned expert get nothing in that layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import Group, merged, plan_for, saliency
from services.model.merges.dominant import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    def grouping(number: int, kept: int) -> Sequence[Group]:
        need = saliency(evidence, number)
        order = np.lexsort((np.arange(len(need)), -need)).tolist()
        pruned = tuple(order[kept:])
        return [*(Group((expert,), (1.0,)) for expert in order[:kept]), *([Group(pruned, (0.0,) * len(pruned))] if pruned else [])]

    return merged(evidence, plan_for(evidence, room_bytes, bits, "uniform"), bits, grouping, merge)
