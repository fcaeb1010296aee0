"""First steps of a model before anyone waits for them: they warm caches and give the service model its first points."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from services.model.families.base import MoeModel
from services.model.families.replays import RECORDED_AT
from services.worker.emulation import Device
from services.worker.step_times import StepTimesFit

Sample = tuple[int, float]  # tokens read or rows decoded, and the seconds that it took
Call = Callable[[], object]

NUM_REPEATS = 3
PROMPT_TOKENS = (8, 32)
STRIDE = 7919  # a prime


def warm_up(model: MoeModel, max_batch: int, max_prompt_tokens: int, device: Device, fit: StepTimesFit) -> None:
    """Reads prompts and decodes at the smallest and the largest batch; counts nothing. Times are those of the emulated device."""
    for num_rows in sorted({1, max_batch}):
        prefills, step = samples(model, num_rows, max_prompt_tokens, device, _median_s)
        for read_tokens, read_s in prefills:
            fit.prefill.anchor(read_tokens, read_s)
        fit.step.anchor(*step)


def samples(
    model: MoeModel, num_rows: int, max_prompt_tokens: int, device: Device, timed_s: Callable[[Call], float]
) -> tuple[list[Sample], Sample]:
    """Of prefills of some lengths, and of one step; on a GPU of recorded ones, which is what tasks get."""
    cache, slots = model.new_cache(num_rows), list(range(num_rows))
    prefills = []

    def timed(call: Call) -> float:
        for _ in range(RECORDED_AT if model.device.type == "cuda" else 0):
            call()
        return timed_s(call)

    for num_tokens in sorted({min(n, max_prompt_tokens) for n in PROMPT_TOKENS}):
        prompts = _prompts(model.shape.vocab_size, num_rows, num_tokens)
        measured_s = timed(lambda: model.prefill(cache, slots, prompts))  # noqa: B023
        read_tokens = num_tokens * num_rows
        prefills.append((read_tokens, device.prefill_s(read_tokens, measured_s)))
    return prefills, (num_rows, device.step_s(num_rows, timed(lambda: model.step(cache, slots))))


def times_s(call: Call, num_runs: int) -> list[float]:
    times = []
    for _ in range(num_runs):
        began_at_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - began_at_s)
    return times


def _prompts(vocab_size: int, num_rows: int, num_tokens: int) -> list[list[int]]:
    """From all over the vocabulary: equal tokens would all go to one expert of a layer, and to read one expert takes less time."""
    ids = [STRIDE * n % vocab_size for n in range(num_rows * num_tokens)]
    return [ids[start : start + num_tokens] for start in range(0, len(ids), num_tokens)]


def _median_s(call: Call) -> float:
    """The first run, which compiles and allocates, does not count."""
    return statistics.median(times_s(call, 1 + NUM_REPEATS)[1:])
