"""Which drift an update followed. It judges updates by their times only.

Reading of "without reason": for each edge, an update with no mix change since that edge's last update.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.results import Update


@dataclass(frozen=True, slots=True)
class FollowedUpdate:
    """`drift_at_s` is the last mix change before the update was asked for; None where there was none."""

    update: Update
    drift_at_s: float | None
    without_reason: bool


def followed(updates: Sequence[Update], drifts_at_s: Sequence[float]) -> tuple[FollowedUpdate, ...]:
    """Each successful update with the drift it followed, in order of time."""
    answered: set[tuple[str, float]] = set()  # (edge, drift) that already had an update
    found = []
    for update in sorted((u for u in updates if u.ok), key=lambda u: u.at_s):
        drift_at_s = max((at_s for at_s in drifts_at_s if at_s <= update.requested_at_s), default=None)
        key = None if drift_at_s is None else (update.edge_id, drift_at_s)
        found.append(FollowedUpdate(update, drift_at_s, key is None or key in answered))
        if key is not None:
            answered.add(key)
    return tuple(found)


def unanswered(updates: Sequence[FollowedUpdate], drifts_at_s: Sequence[float]) -> tuple[float, ...]:
    """Drifts that no update followed before the next drift."""
    return tuple(at_s for at_s in drifts_at_s if not any(u.drift_at_s == at_s for u in updates))
