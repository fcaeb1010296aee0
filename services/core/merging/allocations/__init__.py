"""Allocations: in which order layers are given their experts. One file each, registered by its name.

Contract: a file defines `slot_order(frequencies, floor) -> list[int]`, which names each layer exactly (num_experts - floor) times,
the neediest first. It never looks at bytes; `budget.filled` hands the experts out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from services.core.merging import registry
from services.core.merging.values import Frequencies

Allocation = Callable[[Frequencies, int], list[int]]


def allocation(name: str) -> Allocation:
    return cast(Allocation, registry.entry(__name__, name, "slot_order"))


def names() -> tuple[str, ...]:
    return registry.names(__name__)
