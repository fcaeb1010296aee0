"""MergeMoE (arXiv 2510.14436): the most used experts are centres, others join the one nearest in the matrices that lead in; mean by use.

The projection out of the hidden units is then solved by least squares, so that the merged expert makes what each member made of its own
tokens. Layers keep equally many experts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.families.base import OUT, ExpertStack
from services.model.groups import Group, merged, plan_for, solved_for_members, weighted
from services.model.merges.m_smoe import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    def grouping(number: int, kept: int) -> Sequence[Group]:
        usage = evidence.usage[number]
        order = np.lexsort((np.arange(len(usage)), -usage)).tolist()
        groups = {centre: [centre] for centre in order[:kept]}
        apart = distances(evidence.layers[number].stack)
        for expert in order[kept:]:
            groups[min(groups, key=lambda centre: (apart[centre, expert], centre))].append(expert)
        return [weighted(members, usage) for members in groups.values()]

    plan = plan_for(evidence, room_bytes, bits, "uniform")
    return merged(evidence, plan, bits, grouping, merge, solved_for_members(evidence))


def distances(stack: ExpertStack) -> np.ndarray:
    """(num_experts, num_experts) Euclidean, of all matrices that lead into the hidden units."""
    leading_in = torch.cat([weight.float().flatten(1) for name, weight in stack.weights.items() if name != OUT], dim=1)
    return torch.cdist(leading_in, leading_in).numpy()
