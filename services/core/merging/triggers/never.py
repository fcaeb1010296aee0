"""Never asks for a merge: ONTO alone, with every edge on its first model. The shift is still measured, for people to see."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.core.merging.shift import activation_shift
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.windows import CountWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    interval_s: float = 20.0
    min_tokens: int = 500

    @property
    def name(self) -> str:
        return "never"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, self.min_tokens)
        later = replace(state, due_at_s=now_s + self.interval_s)
        if not shift.enough:
            return later, TriggerDecision("skip", "too few tokens", shift.value, self.interval_s, window, window)
        return later, TriggerDecision("keep", "never updates", shift.value, self.interval_s, window, window.emptied())
