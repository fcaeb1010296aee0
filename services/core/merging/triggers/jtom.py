"""JTOM's trigger (Algorithm 2 of the ONTO/JTOM paper): every δ, ask for a new merge if |f - f'| ≥ g and shorten δ, else lengthen it.

Readings of what the paper leaves open: δ has a floor, and a cap in product mode; one δ an edge; the norm of `shift.py`; a minimum of
tokens in half of the layers, or the check is skipped; f counts since the last decision; f' is that of the deployed version.
Product mode adds three guards against updates without reason; paper mode is Algorithm 2 and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from services.core.merging.errors import OptionError
from services.core.merging.mix import GRID, distance, explain
from services.core.merging.shift import activation_shift, excess_between
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.values import Mix
from services.core.merging.windows import CountWindow

PRODUCT_CAP = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`interval_s` is the initial δ, `adjustment_s` is m, `threshold` is g (paper's best: 20, 60, 0.2).

    Product mode only: `cap_s` (10 δ unless given); `min_mix_change`: an update whose mix lies nearer to the deployed one keeps the
    version; `confirm`: when the halves of a shifted window disagree, traffic changed within it, and a model built for that blend
    would need a second update, so the older half is dropped and the next check, a `confirm_s` later, decides on what is newer
    (one window's delay against one needless build; turn it off where checks are rare and every window is long past any change);
    `recent_tasks`: look at no more than about so many of the newest tasks, so that slow blends do not hide in a long window (0: all).
    """

    interval_s: float = 20.0
    adjustment_s: float = 60.0
    threshold: float = 0.2
    min_tokens: int = 500
    mode: Literal["paper", "product"] = "product"
    floor_s: float = 1.0
    cap_s: float | None = None
    min_mix_change: float = 0.1
    confirm: bool = True
    confirm_s: float | None = None
    recent_tasks: int = 0
    grid: int = GRID

    def __post_init__(self) -> None:
        if self.mode not in ("paper", "product"):
            raise OptionError(f"mode is {self.mode!r}; choose 'paper' or 'product'")
        if not 0 < self.threshold <= 1:
            raise OptionError(f"threshold is {self.threshold}; a total variation lies in (0, 1]")
        if self.interval_s <= 0 or self.floor_s <= 0 or self.adjustment_s < 0:
            raise OptionError("interval_s and floor_s must be above 0, adjustment_s not below")

    @property
    def name(self) -> str:
        return "jtom"

    @property
    def raw_frequencies(self) -> bool:
        return self.mode == "paper"

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        if self._product and self.recent_tasks:
            window = window.recent(self.recent_tasks)
        shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, self.min_tokens)
        if not shift.enough:
            reason = f"too few tokens: {shift.layers_counted} of {shift.num_layers} layers have {self.min_tokens}"
            return self._skipped(state, window, window, shift.value, reason, state.interval_s, now_s)
        if shift.value < self.threshold:
            return self._kept(state, window, shift.value, f"shift {shift.value:.3f} below {self.threshold}", now_s)
        if not self._product:
            return self._updated(state, window, shift.value, None, now_s)
        evidence = window
        if self.confirm:
            older, newer = window.halves()
            changing = not self._agree(older, newer)
            if changing and not state.suspected:
                reason = f"shift {shift.value:.3f}, traffic is changing: confirming on what is newer"
                wait_s = min(state.interval_s, self.interval_s if self.confirm_s is None else self.confirm_s)
                return self._skipped(replace(state, suspected=True), window, newer, shift.value, reason, wait_s, now_s)
            evidence = newer if changing else window
        return self._guarded(state, evidence, shift.value, now_s)

    @property
    def _product(self) -> bool:
        return self.mode == "product"

    def _agree(self, older: CountWindow, newer: CountWindow) -> bool:
        """The halves of a window show the same traffic: they differ by no more than noise and half the threshold."""
        return excess_between(older.counts, newer.counts, self.min_tokens // 4) < self.threshold / 2

    def _guarded(self, state: TriggerState, evidence: CountWindow, shift: float, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        """An update, unless it would ask for the mix that is deployed (almost)."""
        if not state.deployed.profiles:
            return self._updated(state, evidence, shift, None, now_s)
        mix = explain(evidence.counts, state.deployed.profiles, self.grid)
        moved = distance(mix.shares, state.deployed.mix)
        if moved < 1e-9:
            return self._kept(state, evidence, shift, "same mix", now_s)
        if moved < self.min_mix_change:
            return self._kept(state, evidence, shift, f"same mix within {self.min_mix_change}: it moved by {moved:.2f}", now_s)
        return self._updated(state, evidence, shift, mix, now_s)

    def _updated(
        self, state: TriggerState, evidence: CountWindow, shift: float, mix: Mix | None, now_s: float
    ) -> tuple[TriggerState, TriggerDecision]:
        interval_s = max(self.floor_s, state.interval_s - self.adjustment_s)
        reason = f"shift {shift:.3f} reaches {self.threshold}"
        decision = TriggerDecision("update", reason, shift, interval_s, evidence, evidence.emptied(), mix)
        return replace(state, interval_s=interval_s, due_at_s=now_s + interval_s, suspected=False), decision

    def _kept(
        self, state: TriggerState, window: CountWindow, shift: float, reason: str, now_s: float
    ) -> tuple[TriggerState, TriggerDecision]:
        interval_s = state.interval_s + self.adjustment_s
        if self._product:
            cap_s = PRODUCT_CAP * self.interval_s if self.cap_s is None else self.cap_s
            interval_s = min(interval_s, max(cap_s, self.floor_s))
        decision = TriggerDecision("keep", reason, shift, interval_s, window, window.emptied())
        return replace(state, interval_s=interval_s, due_at_s=now_s + interval_s, suspected=False), decision

    def _skipped(
        self, state: TriggerState, window: CountWindow, carried: CountWindow, shift: float, reason: str, wait_s: float, now_s: float
    ) -> tuple[TriggerState, TriggerDecision]:
        wait_s = max(self.floor_s, wait_s)
        return replace(state, due_at_s=now_s + wait_s), TriggerDecision("skip", reason, shift, wait_s, window, carried)
