"""What triggers have in common that come to the same conclusion at every check, whatever the shift: it is measured for people to see."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from services.core.merging.shift import activation_shift
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.windows import CountWindow


def scheduled(
    state: TriggerState,
    window: CountWindow,
    now_s: float,
    action: Literal["update", "keep"],
    reason: str,
    interval_s: float,
    min_tokens: int,
) -> tuple[TriggerState, TriggerDecision]:
    """A check without enough tokens is skipped and its counts are kept for the next one."""
    shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, min_tokens)
    later = replace(state, due_at_s=now_s + interval_s)
    if not shift.enough:
        too_few = f"too few tokens: {shift.layers_counted} of {shift.num_layers} layers have {min_tokens}"
        return later, TriggerDecision("skip", too_few, shift.value, interval_s, window, window)
    return later, TriggerDecision(action, reason, shift.value, interval_s, window, window.emptied())
