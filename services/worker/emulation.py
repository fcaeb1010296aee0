"""The device that an edge stands for, where it is slower than the machine that it runs on. Says how long to wait; the batch loop waits."""

from __future__ import annotations

from services.core.offload.values import StepTimes
from services.model.generation import StepTiming

MOST_BEHIND_S = 0.25  # a device of stated times makes up for a pause of this machine that is no longer; a longer one is felt


class Device:
    """Either `speed` times as fast as this machine is at the moment, or as fast as `stated`, however busy this machine is."""

    def __init__(self, speed: float = 1.0, stated: StepTimes | None = None) -> None:
        self._speed = speed
        self._stated = stated

    @property
    def most_behind_s(self) -> float:
        return 0.0 if self._stated is None else MOST_BEHIND_S

    def prefill_s(self, num_tokens: int, measured_s: float) -> float:
        if self._stated is None or num_tokens == 0:
            return measured_s / self._speed
        return self._stated.prefill_base_s + self._stated.prefill_token_s * num_tokens

    def step_s(self, num_rows: int, measured_s: float) -> float:
        if self._stated is None or num_rows == 0:
            return measured_s / self._speed
        return self._stated.step_base_s + self._stated.step_row_s * num_rows

    def owed_s(self, timing: StepTiming, elapsed_s: float) -> float:
        """To wait after a turn that took `elapsed_s` from its first prompt on. Below 0: this machine was slower than the device."""
        if self._stated is None:
            return (timing.prefill_s + timing.step_s) * (1.0 / self._speed - 1.0)
        if not timing.num_rows and not timing.num_prompts:
            return 0.0
        reading_s = self.prefill_s(timing.prefill_tokens, 0.0) if timing.num_prompts else 0.0
        return reading_s + self.step_s(timing.num_rows, 0.0) - elapsed_s
