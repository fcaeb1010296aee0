"""An idle edge measures itself again, since what it measured at its start may be many times too slow: other workers may have started too.

An edge that looks slow gets no task that would tell. The service model of a busy edge is the business of its tasks.
"""

from __future__ import annotations

from services.runtime.clock import Clock
from services.worker.batch_loop import BatchLoop
from services.worker.emulation import Device
from services.worker.updates import Updater
from services.worker.warm_up import Call, Sample, samples, times_s

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # until the next look: longer and longer while the edge agrees with itself
AGREES_WITHIN = 1.2  # times as fast or as slow
TYPICAL_TOKENS = 32


class IdleMeasuring:
    """A round is a few prompts and steps on the batch thread, whose results nobody gets. A task that comes waits for half a round."""

    def __init__(self, loop: BatchLoop, updater: Updater, max_batch: int, max_prompt_tokens: int, device: Device, clock: Clock) -> None:
        self._loop = loop
        self._updater = updater
        self._max_batch = max_batch
        self._max_prompt_tokens = max_prompt_tokens
        self._device = device
        self._clock = clock

    async def run(self) -> None:
        wait_s = FIRST_WAIT_S
        while True:
            await self._clock.sleep(wait_s)
            if not self._is_idle:
                wait_s = FIRST_WAIT_S
                continue
            before_s = self._typical_s()
            await self.measure()
            agrees = before_s <= self._typical_s() * AGREES_WITHIN and self._typical_s() <= before_s * AGREES_WITHIN
            wait_s = min(2 * wait_s, LONGEST_WAIT_S) if agrees else FIRST_WAIT_S

    async def measure(self) -> None:
        """One round; nothing is taken from one that a task or an update broke off."""
        prefills: list[Sample] = []
        steps: list[Sample] = []
        for num_rows in sorted({1, self._max_batch}):
            if not self._is_idle:
                return
            read, step = await self._loop.at_boundary(
                lambda engine, rows=num_rows: samples(engine.model, rows, self._max_prompt_tokens, self._device, _least_s)  # type: ignore[misc]
            )
            prefills += read
            steps.append(step)
        self._loop.step_times.prefill.renew(prefills)
        self._loop.step_times.step.renew(steps)

    @property
    def _is_idle(self) -> bool:
        return not self._loop.task_ids and not self._updater.is_updating

    def _typical_s(self) -> float:
        times = self._loop.step_times.value()
        return times.prefill_base_s + times.prefill_token_s * TYPICAL_TOKENS + times.step_base_s + times.step_row_s


def _least_s(call: Call) -> float:
    """Of two runs: what else the machine does only adds."""
    return min(times_s(call, 2))
