"""How task mixes are written on the command line, and the mixes that have a name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.cli.console import CommandError

if TYPE_CHECKING:
    from services.core.workload.mixes import DriftingMix

MIX_HELP = (
    "drift (three phases, each led by another two task types), uniform, or phases START_S:TYPE=SHARE,TYPE=SHARE joined by semicolons, "
    "such as '0:copa=1;60:squad=3,copa=1'."
)
NUM_PHASES = 3


def shares_of(text: str, task_types: Sequence[str]) -> dict[str, float]:
    """`squad` or `squad=3,copa=1` as shares that sum to 1; unknown types are refused by name."""
    shares: dict[str, float] = {}
    for part in text.split(","):
        task_type, has_share, share = (piece.strip() for piece in part.partition("="))
        if task_type not in task_types:
            raise CommandError(f"mix: {task_type!r} is no task type of these tasks; they have {', '.join(task_types)}")
        shares[task_type] = _share(share, task_type) if has_share else 1.0
    total = sum(shares.values())
    if not total > 0:
        raise CommandError(f"mix: {text!r} has no share above 0")
    return {task_type: share / total for task_type, share in sorted(shares.items())}


def mix_of(text: str, task_types: Sequence[str], duration_s: float) -> DriftingMix:
    from services.core.workload.mixes import DriftingMix, MixPhase

    if text == "uniform":
        return DriftingMix.constant(dict.fromkeys(task_types, 1 / len(task_types)))
    if text == "drift":
        return _drifting(task_types, duration_s)
    phases = []
    for part in text.split(";"):
        start, colon, shares = part.rpartition(":")
        if colon and not _is_number(start):
            raise CommandError(f"mix: {start!r} is no start in seconds; write START_S:TYPE=SHARE,...")
        phases.append(MixPhase(float(start) if colon else 0.0, shares_of(shares, task_types)))
    try:
        return DriftingMix(tuple(phases))
    except ValueError as error:
        raise CommandError(f"mix: {error}") from error


def _drifting(task_types: Sequence[str], duration_s: float) -> DriftingMix:
    """Two task types lead each phase (one, where there are but two types)."""
    from loadgen.demo_plan import led_by
    from services.core.workload.mixes import DriftingMix, MixPhase

    num_leaders = min(2, len(task_types) - 1)
    if num_leaders == 0:
        return DriftingMix.constant({task_types[0]: 1.0})
    phases = []
    for phase in range(NUM_PHASES):
        leaders = [task_types[(num_leaders * phase + n) % len(task_types)] for n in range(num_leaders)]
        phases.append(MixPhase(phase * duration_s / NUM_PHASES, led_by(leaders, task_types)))
    return DriftingMix(tuple(phases))


def _share(text: str, task_type: str) -> float:
    if not _is_number(text) or float(text) < 0:
        raise CommandError(f"mix: {text!r} is no share of {task_type}; write a number from 0")
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return float("-inf") < float(text) < float("inf")
    except ValueError:
        return False
