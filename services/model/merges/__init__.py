"""The registry of merge methods: one file each, whose name is the method's (`m_smoe.py` is "m-smoe").

Contract of a file: `merge(members, coefficients)`, a pure tensor rule from the aligned float32 weights of a group's experts,
(group_size, *matrix_shape), and their coefficients, (group_size,) summing to 1, to one expert's weights, (*matrix_shape). Called once for
each matrix of each group of two or more. Where that is a weighted sum the file should also define `shares(coefficients)`, what each
member counts in it, adding up to 1: it is then merged without a copy of its members, and those that count 0 are not read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from services.core.merging.errors import OptionError
from services.core.merging.recipes import BEST, FITTED
from services.core.merging.registry import entry, names, optional_entry
from services.core.naming import nearest

MergeMethod = Callable[[Tensor, Tensor], Tensor]
MergeShares = Callable[[Sequence[float]], Sequence[float]]


def merge_methods() -> tuple[str, ...]:
    """Names of all methods."""
    return names(__name__)


def check_method(name: str) -> None:
    """OptionError where no version can be built by a method of that name."""
    known = (BEST, FITTED, *merge_methods())
    if name not in known:
        raise OptionError(f"method {name!r} is unknown; {nearest(name, known, 'there are ' + ', '.join(known))}")


def merge_method(name: str) -> MergeMethod:
    """The rule called `name`; OptionError names the known ones."""
    method: MergeMethod = entry(__name__, name, "merge")
    return method


def merge_shares(name: str) -> MergeShares | None:
    """What members count in the rule called `name`; none where it is not a weighted sum."""
    shares: MergeShares | None = optional_entry(__name__, name, "shares")
    return shares
