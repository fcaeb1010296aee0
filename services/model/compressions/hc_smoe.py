"""HC-SMoE (Chen et al., ICML 2025, arXiv 2410.08589): average-linkage clusters of mean expert outputs, mean weighted by use.

Every expert is run on all calibration tokens of its layer, not only on those sent to it. Layers keep equally many experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import Group, mean_outputs, merged, plan_for, weighted
from services.model.merges.m_smoe import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    def grouping(number: int, kept: int) -> Sequence[Group]:
        usage = evidence.usage[number]
        tree = linkage(mean_outputs(evidence, number, by_gates=False), method="average", metric="euclidean")
        labels = fcluster(tree, kept, criterion="maxclust")
        clusters = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels)]
        return [weighted(sorted(members, key=lambda e: (-usage[e], e)), usage) for members in clusters]

    return merged(evidence, plan_for(evidence, room_bytes, bits, "uniform"), bits, grouping, merge)
