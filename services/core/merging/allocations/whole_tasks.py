"""Whole tasks first: keep every expert that the most frequent task types need, as long as they fit, before sharing out what is left.

An answer is right only if all of its tokens meet their experts in all layers: half of a task's experts are worth next to nothing, the
last few very much. Choosing by frequency alone (mc-smoe) cuts the rarely used experts of every task of a mix and may keep none whole.
This takes task types by falling share, each whole or not at all; seats left over go by frequency. Where no task type fits it is mc-smoe.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from services.core.merging.allocations import TaskUse
from services.core.merging.allocations.mc_smoe import slot_order
from services.core.merging.values import Frequencies

__all__ = ["ranking", "slot_order"]

TAIL = 0.002  # share of a layer's tokens that a task type may lose and still count as whole


def ranking(use: Frequencies, tasks: Sequence[TaskUse], num_slots: int) -> Frequencies:
    """Frequency, plus 1 for the experts of the task types that are kept whole. `num_slots`: experts that fit over all layers."""
    kept = np.zeros(use.shape, dtype=bool)
    for task in sorted(tasks, key=lambda task: (-task.share, task.task_type)):
        with_task = kept | needed(task.frequencies)
        if task.share > 0 and np.maximum(with_task.sum(axis=1), 1).sum() <= num_slots:
            kept = with_task
    return use + kept


def needed(frequencies: Frequencies) -> NDArray[np.bool_]:
    """(num_layers, num_experts): the fewest experts of each layer that all but `TAIL` of the task's tokens go to."""
    order = np.argsort(-frequencies, axis=1, kind="stable")
    ranked = np.take_along_axis(frequencies, order, axis=1)
    before = np.cumsum(ranked, axis=1) - ranked
    wanted = (before < 1 - TAIL) & (ranked > 0)
    result = np.zeros(frequencies.shape, dtype=bool)
    np.put_along_axis(result, order, wanted, axis=1)
    return result
