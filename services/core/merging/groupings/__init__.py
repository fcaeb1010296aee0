"""Groupings: which experts of a layer become one. One file each, registered by its name.

Contract: a file defines `groups(usage, statistics, num_groups, bonus)`. `usage` (num_experts,) ranks the experts, `statistics` are
those of the traffic the plan is for, `bonus[e, d]` is added to the similarity of expert e to dominant d (zero without a present
plan). The answer holds every expert once, in `num_groups` groups, each with its dominant expert first and the others ascending,
groups ascending by dominant: equal inputs give equal tuples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from services.core.merging import registry
from services.core.merging.values import LayerStatistics

Groups = tuple[tuple[int, ...], ...]
Grouping = Callable[[NDArray[np.float64], LayerStatistics, int, NDArray[np.float64]], Groups]


def grouping(name: str) -> Grouping:
    return cast(Grouping, registry.entry(__name__, name, "groups"))


def names() -> tuple[str, ...]:
    return registry.names(__name__)
