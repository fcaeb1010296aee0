"""Knows when traffic changes and asks for a merge right then: an upper anchor for update times, of use in simulations only.

It does not know what the traffic becomes: the merge is built for what was counted in the `settle_s` since the change.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.core.merging.errors import OptionError
from services.core.merging.shift import activation_shift
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.windows import CountWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`changes_at_s`: instants of the clock that checks and reports use; the start is one, since first models fit no traffic."""

    changes_at_s: tuple[float, ...] = (0.0,)
    settle_s: float = 5.0
    interval_s: float = 1.0
    min_tokens: int = 500

    def __post_init__(self) -> None:
        if self.interval_s <= 0 or self.settle_s < 0:
            raise OptionError("interval_s must be above 0, settle_s not below")

    @property
    def name(self) -> str:
        return "clairvoyant"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        later = replace(state, due_at_s=now_s + self.interval_s)
        changed_at_s = max((at_s for at_s in self.changes_at_s if at_s <= now_s), default=None)
        if changed_at_s is None or (changed_at_s,) in state.memory:
            shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, self.min_tokens)
            reason = "nothing changed since the last update"
            return later, TriggerDecision("keep", reason, shift.value, self.interval_s, window, window.emptied())
        since = replace(window, reports=tuple(report for report in window.reports if report.start_at_s >= changed_at_s))
        shift = activation_shift(since.frequencies, state.deployed.reference, since.counts, self.min_tokens)
        if now_s < changed_at_s + self.settle_s or not shift.enough:
            reason = f"counts what came since the change at {changed_at_s:g} s"
            return later, TriggerDecision("skip", reason, shift.value, self.interval_s, since, since)
        later = replace(later, memory=(*state.memory, (changed_at_s,)))
        return later, TriggerDecision(
            "update", f"traffic changed at {changed_at_s:g} s", shift.value, self.interval_s, since, since.emptied()
        )
