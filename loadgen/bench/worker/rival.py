"""transformers' own generation, one static batch after another: each runs until its longest answer is done, as a batch there must."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loadgen.bench.worker.lengths import BenchTask

Order = Callable[[Sequence[BenchTask]], Sequence[BenchTask]]

ORDERS: dict[str, Order] = {
    "as they come": list,
    "by prompt length": lambda tasks: sorted(tasks, key=lambda task: len(task.prompt_ids)),
}
# What no server can know before it has answered; beside the others to show what it would be worth.
BY_ANSWER: Order = lambda tasks: sorted(tasks, key=lambda task: (task.num_output, len(task.prompt_ids)))  # noqa: E731


@dataclass(frozen=True, slots=True)
class RivalRun:
    wall_s: float
    processor_s: float
    num_tokens: int  # each task's own alone
    completion_s: tuple[float, ...]  # of each task, from the start of its batch

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / self.wall_s

    @property
    def tokens_per_processor_s(self) -> float:
        return self.num_tokens / self.processor_s


def batches(tasks: Sequence[BenchTask], size: int) -> Iterator[Sequence[BenchTask]]:
    for start in range(0, len(tasks), size):
        yield tasks[start : start + size]


def run(model: Any, tasks: Sequence[BenchTask], size: int) -> RivalRun:
    completion_s: list[float] = []
    began_s, processor_began_s = time.perf_counter(), time.process_time()
    for batch in batches(tasks, size):
        batch_began_s = time.perf_counter()
        generate(model, batch)
        completion_s += [time.perf_counter() - batch_began_s] * len(batch)
    wall_s, processor_s = time.perf_counter() - began_s, time.process_time() - processor_began_s
    return RivalRun(wall_s, processor_s, sum(task.num_output for task in tasks), tuple(completion_s))


def generate(model: Any, batch: Sequence[BenchTask]) -> dict[str, list[int]]:
    """Each task's own tokens; what a batch makes beyond them is cut."""
    longest = max(len(task.prompt_ids) for task in batch)
    ids = torch.tensor([[*task.prompt_ids, *([0] * (longest - len(task.prompt_ids)))] for task in batch])
    mask = (torch.arange(longest) < torch.tensor([[len(task.prompt_ids)] for task in batch])).long()
    num_output = max(task.num_output for task in batch)
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), max_new_tokens=num_output, do_sample=False
        )
    return {task.task_id: row[1 : 1 + task.num_output].tolist() for task, row in zip(batch, made, strict=True)}


class Overflow:
    """Counts tokens that transformers gave to no expert, because their expert had its capacity in that sequence."""

    def __init__(self, model: Any) -> None:
        self.num_tokens = 0
        for module in model.modules():
            if type(module).__name__ == "SwitchTransformersTop1Router":
                module.register_forward_hook(self._see)

    def _see(self, module: Any, inputs: Any, outputs: Any) -> None:
        dispatched = outputs[0]
        self.num_tokens += dispatched.shape[0] * dispatched.shape[1] - int(dispatched.sum())
