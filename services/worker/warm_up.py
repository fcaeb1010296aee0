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
STRIDE = 7919  # a prime


def warm_up(model: MoeModel, max_batch: int, max_prompt_tokens: int, device: Device, fit: StepTimesFit) -> None:
    """Reads prompts and decodes at the smallest and the largest batch; counts nothing. Times are those of the emulated device."""
    cache = model.new_cache(max_batch)
    for num_rows in sorted({1, max_batch}):
        slots = list(range(num_rows))
        for num_tokens in sorted({min(n, max_prompt_tokens) for n in PROMPT_TOKENS}):
            prompts = prompts_over(model.shape.vocab_size, num_rows, num_tokens)
            measured_s = _median_s(lambda: model.prefill(cache, slots, prompts))  # noqa: B023
            fit.prefill.anchor(num_tokens * num_rows, device.prefill_s(num_tokens * num_rows, measured_s))
        fit.step.anchor(num_rows, device.step_s(num_rows, _median_s(lambda: model.step(cache, slots))))  # noqa: B023


def prompts_over(vocab_size: int, num_rows: int, num_tokens: int) -> list[list[int]]:
    """From all over the vocabulary: equal tokens would all go to one expert of a layer, and to read one expert takes less time."""
    ids = [STRIDE * n % vocab_size for n in range(num_rows * num_tokens)]
    return [ids[start : start + num_tokens] for start in range(0, len(ids), num_tokens)]


def _median_s(call: Callable[[], object]) -> float:
    """The first run, which compiles and allocates, does not count."""
    call()
    times = []
    for _ in range(NUM_REPEATS):
        began_at_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_at_s)
    return statistics.median(times)
