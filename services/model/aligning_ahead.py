"""Finds the orders that plans will ask for before they are asked for: one pair takes seconds at full size, and a layer has hundreds.

All pairs of a base model are out of the question; those of each task type alone and of all together, in an edge's memory, are few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from services.core.merging.values import MergePlan
from services.model.alignment import Aligned
from services.model.merging import ingredients

_SAVED_EVERY = 100  # pairs, so that little is lost where it ends early

Tell = Callable[[int, int], None]  # pairs done, of so many


def pairs(plan: MergePlan) -> set[tuple[int, int, int]]:
    """(layer, reference, member) of every member that a plan's merge puts in order."""
    found = set()
    for layer, groups in enumerate(ingredients(plan)):
        for group in groups:
            found |= {(layer, group.reference, member) for member in group.members if member != group.reference}
    return found


def missing_pairs(aligned: Aligned, plans: Iterable[MergePlan]) -> list[tuple[int, int, int]]:
    """Those not found yet, by layer and reference."""
    wanted = {pair for plan in plans for pair in pairs(plan)}
    return sorted(pair for pair in wanted if not aligned.has(*pair))


def align_ahead(aligned: Aligned, plans: Iterable[MergePlan], tell: Tell | None = None) -> int:
    """Find and keep what is missing for these plans; how many pairs that were."""
    missing = missing_pairs(aligned, plans)
    for done, pair in enumerate(missing):
        if tell is not None:
            tell(done, len(missing))
        if done and done % _SAVED_EVERY == 0:
            aligned.save()
        if done and pair[0] != missing[done - 1][0]:
            aligned.release(missing[done - 1][0])
        aligned.order(*pair)
    if missing:
        aligned.release(missing[-1][0])
    aligned.save()
    return len(missing)
