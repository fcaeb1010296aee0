"""The physics of one edge server: a queue and a batch whose steps take time. Decides nothing.

As the worker's batch loop does: at a step boundary finished tasks leave, waiting ones fill the free slots when reading their prompts is
due (it halts all), then every running task gets a token a step. Only boundaries at which something changes are looked at.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from loadgen.simulator.model import SimulatedVersion
from services.core.admission import Admission
from services.core.offload.values import Link, StepTimes
from services.core.runtimes import Effect


@dataclass(frozen=True, slots=True, eq=False)
class EdgeSite:
    """What an edge is, for a whole run."""

    edge_id: str
    links: dict[str, Link]
    step_times: StepTimes
    memory_share: float
    max_batch: int
    max_queue: int
    speed: float = 1.0  # of the machine that was measured; step times are in it already


class TaskRuntime(Protocol):
    """What a server that holds no merged model does to a task that begins."""

    def begin(self, task: int) -> Effect: ...


class Edge:
    __slots__ = (
        "_admission",
        "_anchor_s",
        "_anchor_step",
        "_output_tokens",
        "_prompt_tokens",
        "_running",
        "_step_s",
        "admitting",
        "available_at_s",
        "counted",
        "counted_from",
        "counted_since_s",
        "effects",
        "num_counted",
        "queue",
        "runtime",
        "site",
        "turn_at_s",
        "version",
    )

    def __init__(
        self,
        site: EdgeSite,
        version: SimulatedVersion,
        prompt_tokens: Sequence[int],
        output_tokens: Sequence[int],
        runtime: TaskRuntime | None = None,
    ) -> None:
        self.site = site
        self.version = version
        self.runtime = runtime
        self.effects: list[Effect] = []  # of the tasks that began last, where there is a runtime
        self.queue: deque[int] = deque()  # tasks, first in, first out
        self.admitting = True
        self.available_at_s = 0.0
        self.turn_at_s = math.inf  # the next boundary to look at
        self.count_anew(0.0)
        self._prompt_tokens, self._output_tokens = prompt_tokens, output_tokens
        self._running: list[tuple[int, int]] = []  # heap of (step at which it ends, task)
        self._anchor_s = 0.0  # when `_anchor_step` steps were done and the next began
        self._anchor_step = 0
        self._step_s = 0.0
        self._admission = Admission()

    def copy(self) -> Edge:
        """As it is now, without what its server does to tasks beyond computing them."""
        other = Edge(self.site, self.version, self._prompt_tokens, self._output_tokens)
        other.queue, other._running = self.queue.copy(), self._running.copy()
        other.admitting, other.available_at_s, other.turn_at_s = self.admitting, self.available_at_s, self.turn_at_s
        other._anchor_s, other._anchor_step, other._step_s = self._anchor_s, self._anchor_step, self._step_s
        other._admission = self._admission.copy()
        return other

    def count_anew(self, now_s: float) -> None:
        """For the next activation report."""
        self.counted: dict[int, int] = {}  # tasks that ended since the last one, by task type
        self.counted_from: dict[int, int] = {}  # and by region
        self.num_counted = 0
        self.counted_since_s = now_s

    @property
    def num_running(self) -> int:
        return len(self._running)

    def arrived(self, task: int, now_s: float) -> bool:
        """The task is at the edge. True when the next boundary came nearer, to `turn_at_s`."""
        self.queue.append(task)
        return self.admitting and self.look_soon(now_s)

    def look_soon(self, now_s: float) -> bool:
        """A waiting task may find a free slot at the next boundary: True when that is nearer than the one known."""
        if not self._running:
            soon_s = now_s
        elif len(self._running) >= self.site.max_batch or not self.queue:
            return False
        else:
            passed = max(math.floor((now_s - self._anchor_s) / self._step_s), 0) if self._step_s > 0.0 else 0
            soon_s = self._anchor_s + (passed + 1) * self._step_s
        if soon_s >= self.turn_at_s:
            return False
        self.turn_at_s = soon_s
        return True

    def turn(self, now_s: float) -> tuple[list[int], list[int]]:
        """The boundary at `turn_at_s`: tasks that ended with it, and tasks that begin."""
        running, step = self._running, self._anchor_step
        if running:
            step = running[0][0] if self._step_s <= 0.0 else step + round((now_s - self._anchor_s) / self._step_s)
        ended = []
        while running and running[0][0] <= step:
            ended.append(heapq.heappop(running)[1])
        times, admission = self.site.step_times, self._admission
        begun: list[int] = []
        num_admissible = min(len(self.queue), self.site.max_batch - len(running)) if self.admitting else 0
        if admission.admits(num_admissible, len(running), times.prefill_base_s, now_s):
            for _ in range(num_admissible):
                task = self.queue.popleft()
                begun.append(task)
                heapq.heappush(running, (step + self._output_tokens[task], task))
        self._anchor_step = step
        if not running:
            self.turn_at_s = math.inf
            return ended, begun
        self._anchor_s = now_s
        if begun:
            self._anchor_s += times.prefill_base_s + times.prefill_token_s * sum(self._prompt_tokens[task] for task in begun)
            if self.runtime is not None:
                self.effects = [self.runtime.begin(task) for task in begun]
                self._anchor_s += sum(effect.extra_s for effect in self.effects)
        self._step_s = times.step_base_s + times.step_row_s * len(running)
        num_steps = running[0][0] - step
        if num_admissible and not begun and self._step_s > 0.0:
            num_steps = min(num_steps, max(math.ceil(admission.due_in_s(times.prefill_base_s) / self._step_s), 1))
        self.turn_at_s = self._anchor_s + num_steps * self._step_s
        return ended, begun
