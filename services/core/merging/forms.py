"""Which form each expert takes in a given room: bits, hidden units and rank, by how much error each byte saves.

Errors come from calibration; nothing here touches weights. Greedy on the lower convex hull of each expert's (bytes, error) points: the
optimum of the Lagrangian relaxation (Shoham and Gersho 1988, IEEE ASSP 36(9)), at most one step of one expert away from the best choice;
then what is left goes to forms that fit it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import BudgetError


def chosen_forms(errors: NDArray[np.float64], sizes_bytes: NDArray[np.int64], room_bytes: int) -> NDArray[np.int64]:
    """One form an expert, (num_experts,), with the least sum of errors that the hulls allow within `room_bytes`.

    `errors` and `sizes_bytes` are (num_experts, num_forms). Raises BudgetError where the smallest forms do not fit.
    """
    every = np.arange(len(errors))
    chosen = _smallest(errors, sizes_bytes)
    left = room_bytes - int(sizes_bytes[every, chosen].sum())
    if left < 0:
        raise BudgetError(room_bytes - left, room_bytes)
    stopped: set[int] = set()
    for expert, form, more_bytes in _steps(errors, sizes_bytes, chosen):
        if expert in stopped:
            continue
        if more_bytes > left:
            stopped.add(expert)
            continue
        chosen[expert] = form
        left -= more_bytes
    _fill(chosen, errors, sizes_bytes, left)
    return chosen


def _fill(chosen: NDArray[np.int64], errors: NDArray[np.float64], sizes: NDArray[np.int64], left: int) -> None:
    """Spend what is left: again and again the form of one expert that saves most error, until none that saves any fits."""
    every = np.arange(len(chosen))
    while True:
        more = sizes - sizes[every, chosen][:, None]
        saved = errors[every, chosen][:, None] - errors
        saved = np.where((more > 0) & (more <= left), saved, 0.0)
        expert, form = np.unravel_index(int(saved.argmax()), saved.shape)
        if saved[expert, form] <= 0:
            return
        left -= int(more[expert, form])
        chosen[expert] = form


def _smallest(errors: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """(num_experts,): of the forms of least bytes the one of least error."""
    least = sizes == sizes.min(axis=1, keepdims=True)
    found: NDArray[np.int64] = np.where(least, errors, np.inf).argmin(axis=1)
    return found


def _steps(errors: NDArray[np.float64], sizes: NDArray[np.int64], first: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Steps up the lower convex hulls of all experts: (expert, form, more bytes), those that save most error a byte first.

    Those of one expert come in order, as hulls get flatter.
    """
    at, every = first.copy(), np.arange(len(first))
    found: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
    while every.size:
        more = sizes[every] - sizes[every, at[every]][:, None]
        saved = errors[every, at[every]][:, None] - errors[every]
        slopes = np.divide(saved, more, out=np.full(saved.shape, -np.inf), where=(more > 0) & (saved > 0))
        steepest = slopes.max(axis=1)
        forms = np.where(slopes == steepest[:, None], more, -1).argmax(axis=1)
        goes_on = np.isfinite(steepest)
        rows = np.flatnonzero(goes_on)
        every, forms = every[goes_on], forms[goes_on]
        found.append((steepest[rows], every, forms, more[rows, forms]))
        at[every] = forms
    slopes_of, experts, chosen, bytes_of = (np.concatenate(parts) for parts in zip(*found, strict=True))
    order = np.lexsort((bytes_of, experts, -slopes_of))
    return list(zip(experts[order].tolist(), chosen[order].tolist(), bytes_of[order].tolist(), strict=True))
