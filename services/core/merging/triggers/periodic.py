"""Asks for a new merge every `interval_s`, whatever the shift: the simple peer that JTOM is measured against."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.core.merging.shift import activation_shift
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.windows import CountWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A check without enough tokens is skipped and its counts are kept for the next one."""

    interval_s: float = 60.0
    min_tokens: int = 500

    @property
    def name(self) -> str:
        return "periodic"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, self.min_tokens)
        later = replace(state, due_at_s=now_s + self.interval_s)
        if not shift.enough:
            reason = f"too few tokens: {shift.layers_counted} of {shift.num_layers} layers have {self.min_tokens}"
            return later, TriggerDecision("skip", reason, shift.value, self.interval_s, window, window)
        reason = f"every {self.interval_s:g} s"
        return later, TriggerDecision("update", reason, shift.value, self.interval_s, window, window.emptied())
