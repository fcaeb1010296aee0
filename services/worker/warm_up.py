"""First steps of a model before anyone waits for them: they warm caches and give the service model its first points."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from services.model.families.base import MoeModel
from services.worker.emulation import Device
from services.worker.step_times import StepTimesFit

NUM_REPEATS = 3
PROMPT_TOKENS = (8, 32)


def warm_up(model: MoeModel, max_batch: int, max_prompt_tokens: int, device: Device, fit: StepTimesFit) -> None:
    """Reads prompts and decodes at the smallest and the largest batch; counts nothing. Times are those of the emulated device."""
    cache = model.new_cache(max_batch)
    token = min(2, model.shape.vocab_size - 1)
    for num_rows in sorted({1, max_batch}):
        slots = list(range(num_rows))
        for num_tokens in sorted({min(n, max_prompt_tokens) for n in PROMPT_TOKENS}):
            prompts = [[token] * num_tokens for _ in slots]
            measured_s = _median_s(lambda: model.prefill(cache, slots, prompts))  # noqa: B023
            fit.prefill.anchor(num_tokens * num_rows, device.prefill_s(num_tokens * num_rows, measured_s))
        fit.step.anchor(num_rows, device.step_s(num_rows, _median_s(lambda: model.step(cache, slots))))  # noqa: B023


def _median_s(call: Callable[[], object]) -> float:
    """The first run, which compiles and allocates, does not count."""
    call()
    times = []
    for _ in range(NUM_REPEATS):
        began_at_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_at_s)
    return statistics.median(times)
