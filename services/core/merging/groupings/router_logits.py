"""M-SMoE's grouping (arXiv 2310.01334): the most used experts dominate, each other expert joins the dominant with the most similar
column of router logits.

The cosine comes from the Gram matrix of the logits, which adds over task types, so the cosine of any mix is exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.core.merging.values import LayerStatistics


def groups(
    usage: NDArray[np.float64], statistics: LayerStatistics, num_groups: int, bonus: NDArray[np.float64]
) -> tuple[tuple[int, ...], ...]:
    num_experts = len(usage)
    ranked = np.lexsort((np.arange(num_experts), -usage))
    dominants = ranked[:num_groups]
    similarity = (cosine(statistics.gram) + bonus)[:, dominants]
    # argmax takes the first of equals: the more used dominant.
    nearest = np.argmax(np.round(similarity, 12), axis=1)
    members: dict[int, list[int]] = {int(d): [] for d in sorted(dominants)}
    for expert in sorted(int(e) for e in ranked[num_groups:]):
        members[int(dominants[nearest[expert]])].append(expert)
    return tuple((dominant, *others) for dominant, others in members.items())


def cosine(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cosine of the logit columns, (num_experts, num_experts); a column that is all zero is similar to nothing."""
    norms = np.sqrt(np.clip(np.diag(gram), 0.0, None))
    scale = np.outer(norms, norms)
    similarity: NDArray[np.float64] = np.zeros_like(gram, dtype=np.float64)
    np.divide(gram, scale, out=similarity, where=scale > 0)
    return similarity
