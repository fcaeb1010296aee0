"""Which form each expert takes in a given room: bits, hidden units and rank, by how much error each byte saves.

Errors come from calibration; nothing here touches weights. Greedy on the lower convex hull of each expert's (bytes, error) points: the
optimum of the Lagrangian relaxation (Shoham and Gersho 1988, IEEE ASSP 36(9)), at most one step of one expert away from the best choice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import BudgetError


def chosen_forms(errors: NDArray[np.float64], sizes_bytes: NDArray[np.int64], room_bytes: int) -> NDArray[np.int64]:
    """One form an expert, (num_experts,), with the least sum of errors that the hulls allow within `room_bytes`.

    `errors` and `sizes_bytes` are (num_experts, num_forms). Raises BudgetError where the smallest forms do not fit.
    """
    chosen = np.array([_smallest(error, size) for error, size in zip(errors, sizes_bytes, strict=True)], dtype=np.int64)
    left = room_bytes - int(sizes_bytes[np.arange(len(chosen)), chosen].sum())
    if left < 0:
        raise BudgetError(room_bytes - left, room_bytes)
    steps = [step for expert in range(len(chosen)) for step in _steps(expert, errors[expert], sizes_bytes[expert])]
    stopped: set[int] = set()
    for _, expert, form, more_bytes in sorted(steps, key=lambda step: (-step[0], step[1], step[3])):
        if expert in stopped:
            continue
        if more_bytes > left:
            stopped.add(expert)
            continue
        chosen[expert] = form
        left -= more_bytes
    return chosen


def _smallest(errors: NDArray[np.float64], sizes: NDArray[np.int64]) -> int:
    return int(np.lexsort((errors, sizes))[0])


def _steps(expert: int, errors: NDArray[np.float64], sizes: NDArray[np.int64]) -> list[tuple[float, int, int, int]]:
    """Steps up the lower convex hull from the smallest form: (error saved a byte, expert, form, more bytes); the first falls."""
    steps: list[tuple[float, int, int, int]] = []
    at = _smallest(errors, sizes)
    while True:
        larger = np.flatnonzero((sizes > sizes[at]) & (errors < errors[at]))
        if larger.size == 0:
            return steps
        slopes = (errors[at] - errors[larger]) / (sizes[larger] - sizes[at])
        best = int(larger[np.lexsort((-sizes[larger], -slopes))[0]])
        steps.append((float(slopes.max()), expert, best, int(sizes[best] - sizes[at])))
        at = best
