"""Never asks for a merge: ONTO alone, with every edge on its first model. The shift is still measured, for people to see."""

from __future__ import annotations

from dataclasses import dataclass

from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.triggers._scheduled import scheduled
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
        return scheduled(state, window, now_s, "keep", "never updates", self.interval_s, self.min_tokens)
