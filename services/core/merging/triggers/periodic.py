"""Asks for a new merge every `interval_s`, whatever the shift: the simple peer that JTOM is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.triggers._scheduled import scheduled
from services.core.merging.windows import CountWindow


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    interval_s: float = 60.0
    min_tokens: int = 500

    @property
    def name(self) -> str:
        return "periodic"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        return scheduled(state, window, now_s, "update", f"every {self.interval_s:g} s", self.interval_s, self.min_tokens)
