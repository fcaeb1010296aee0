"""The worker's engine, kept at so many tasks: another is submitted as soon as one is done, until all are."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from loadgen.bench.worker.lengths import BenchTask
from services.core.admission import Admission
from services.model.families.base import ModelShape, MoeModel
from services.model.generation import BatchEngine, Emitted, ExpertCounter, GenTask
from services.model.recorder import CountingRecorder

VERSION = "bench"
PERCENTILES = (50, 95, 99)


class NoText:
    """Tokens are not made into text here, neither by ours nor by transformers."""

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def delta(self, ids_so_far: Sequence[int], new_id: int) -> str:
        return ""


@dataclass(slots=True)
class OurRun:
    """`submitted_s` and `token_s` are instants by task."""

    wall_s: float = 0.0
    processor_s: float = 0.0
    num_steps: int = 0
    num_prefills: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    submitted_s: dict[str, float] = field(default_factory=dict)
    token_s: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.tokens.values()))

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def tokens_per_processor_s(self) -> float:
        return self.num_tokens / self.processor_s

    @property
    def first_token_s(self) -> list[float]:
        return [times[0] - self.submitted_s[task] for task, times in self.token_s.items()]

    @property
    def between_tokens_s(self) -> list[float]:
        return [after - before for times in self.token_s.values() for before, after in pairwise(times)]

    @property
    def completion_s(self) -> list[float]:
        return [times[-1] - self.submitted_s[task] for task, times in self.token_s.items()]


def new_engine(model: MoeModel, num_concurrent: int, new_recorder: Callable[[ModelShape], ExpertCounter] = CountingRecorder) -> BatchEngine:
    return BatchEngine(model, NoText(), VERSION, num_concurrent, new_recorder)


def run(engine: BatchEngine, tasks: Sequence[BenchTask], num_concurrent: int, prefill_base_s: float = 0.0) -> OurRun:
    """Prompts are read when they are in the worker (`Admission`); with `prefill_base_s` of 0 as soon as there is a slot."""
    waiting, made, admission = deque(tasks), OurRun(), Admission()
    began_s, processor_began_s = time.perf_counter(), time.process_time()
    while waiting or engine.has_work:
        while waiting and engine.num_running + engine.num_queued < num_concurrent:
            task = waiting.popleft()
            made.submitted_s[task.task_id] = time.perf_counter()
            engine.submit(GenTask(task.task_id, task.prompt_ids, task.num_output))
        admits = admission.admits(engine.num_admissible, engine.num_running, prefill_base_s, time.perf_counter())
        events = engine.step(admits)
        now_s = time.perf_counter()
        for event in events:
            if isinstance(event, Emitted):
                made.token_s.setdefault(event.task_id, []).append(now_s)
                made.tokens.setdefault(event.task_id, []).append(event.token_id)
        made.num_steps += 1
        made.num_prefills += engine.timing.num_prompts > 0
        made.prefill_s += engine.timing.prefill_s
        made.decode_s += engine.timing.step_s
    made.wall_s, made.processor_s = time.perf_counter() - began_s, time.process_time() - processor_began_s
    return made


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}_s": float(np.percentile(values, share)) if values else 0.0 for share in PERCENTILES}
