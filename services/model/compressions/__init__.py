"""The registry of compressions: one file each, whose name is the compression's (`hc_smoe.py` is "hc-smoe"). Ways to make experts smaller.

Contract of a file: `compress(evidence, room_bytes, bits)`: experts that take at most `room_bytes`, made for the traffic that `evidence`
shows, kept ones held in `bits`. BITS, where a file has it, are those it is compared at; 0 stands for "its own choice".
Raises BudgetError where not even its smallest form fits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.core.merging.registry import entry, names, optional_entry
from services.model.evidence import Evidence
from services.model.families.base import ExpertStack


@dataclass(frozen=True, slots=True)
class Compressed:
    """Experts in the model's dtype, ready to run, and the bytes that their packed form takes. Index maps cost nothing, as everywhere."""

    stacks: tuple[ExpertStack, ...]
    expert_bytes: int
    told: str = ""  # in a few words, what was done


MERGED_BITS = (16, 2)  # a merge as papers have it, and with more experts in few bits

Compression = Callable[[Evidence, int, int], Compressed]


def compressions() -> tuple[str, ...]:
    """Names of all compressions."""
    return names(__name__)


def compression(name: str) -> Compression:
    """The one called `name`; OptionError names the known ones."""
    found: Compression = entry(__name__, name, "compress")
    return found


def compared_bits(name: str) -> tuple[int, ...]:
    """The bits at which a compression is compared with others."""
    return optional_entry(__name__, name, "BITS") or MERGED_BITS


def is_unmerged(name: str) -> bool:
    """Whether a compression keeps every expert, so that its bytes follow from its bits alone."""
    return bool(optional_entry(__name__, name, "UNMERGED"))
