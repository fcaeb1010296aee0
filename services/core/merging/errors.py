"""Errors of the merging core.

MergingError
├── BudgetError     a memory budget that cannot hold the smallest merged model: says the smallest that works
├── OptionError     a name that no registry holds, or an option that a trigger does not have
├── MixError        shares that are no mix of the profiled task types
├── CountsError     counts whose shape is not that of the model they claim to come from
└── StateError      a saved edge state that cannot be read back
"""

from __future__ import annotations


class MergingError(Exception):
    """Root of everything the merging core raises on bad input."""


class BudgetError(MergingError):
    """`smallest_bytes` is the least budget for which a plan exists (reserve included)."""

    def __init__(self, smallest_bytes: int, budget_bytes: int) -> None:
        super().__init__(f"budget_bytes {budget_bytes} holds no merged model of this base: the smallest that works is {smallest_bytes}")
        self.smallest_bytes = smallest_bytes
        self.budget_bytes = budget_bytes


class OptionError(MergingError):
    pass


class MixError(MergingError):
    pass


class CountsError(MergingError):
    pass


class StateError(MergingError):
    pass
