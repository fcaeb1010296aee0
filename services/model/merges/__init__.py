"""The registry of merge methods: one file each, whose name is the method's (`m_smoe.py` is "m-smoe").

Contract of a file: `merge(members, coefficients)`, a pure tensor rule from the aligned float32 weights of a group's experts,
(group_size, *matrix_shape), and their coefficients, (group_size,) summing to 1, to one expert's weights, (*matrix_shape). Called once for
each matrix of each group of two or more.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from services.core.merging.registry import entry, names

MergeMethod = Callable[[Tensor, Tensor], Tensor]


def merge_methods() -> tuple[str, ...]:
    """Names of all methods."""
    return names(__name__)


def merge_method(name: str) -> MergeMethod:
    """The rule called `name`; OptionError names the known ones."""
    method: MergeMethod = entry(__name__, name, "merge")
    return method
