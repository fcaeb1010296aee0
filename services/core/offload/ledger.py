"""The ledger: this broker's own tasks at each edge, exactly; what they still need, as predicted. Finished tasks leave.

Other brokers' tasks enter only as a sum (`Work`), passed in where a wait is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.core.offload.values import StepTimes, Work
from services.core.offload.waits import MIN_TOKENS_LEFT, NO_WAIT, Remainder, WaitForecast, forecast, step_s

MAX_OTHER_TASKS = 64  # other brokers' sum is rolled forward in at most this many equal tasks


@dataclass(slots=True)
class LedgerEntry:
    """One task at one edge. `anchor_at_s` is when it had `output_tokens`; None while it waits."""

    task_id: str
    edge_id: str
    prompt_bytes: int
    prefill_tokens: float
    decode_tokens: float
    max_tokens: int
    rows: float  # tasks in the batch when it came
    output_tokens: int = 0
    anchor_at_s: float | None = None
    forecast_at_s: float = 0.0
    forecast_with: Remainder | None = None  # what the edge's last forecast took this task to need

    def remainder(self, times: StepTimes, token_s: float, now_s: float) -> Remainder:
        """Reading A11: predicted minus elapsed, never below a token. Tokens that were seen replace what was predicted of them."""
        reading_s = times.prefill_base_s + times.prefill_token_s * self.prefill_tokens
        if self.anchor_at_s is None:
            return Remainder(reading_s, self.decode_tokens)
        elapsed_s = now_s - self.anchor_at_s if now_s > self.anchor_at_s else 0.0
        if self.output_tokens == 0:
            if elapsed_s < reading_s:
                return Remainder(reading_s - elapsed_s, self.decode_tokens)
            elapsed_s -= reading_s
        left = self.decode_tokens - self.output_tokens - (elapsed_s / token_s if token_s > 0.0 else 0.0)
        return Remainder(0.0, left if left > MIN_TOKENS_LEFT else MIN_TOKENS_LEFT)

    def as_forecast(self, times: StepTimes, rows: int, now_s: float) -> bool:
        """Whether the tokens seen by now are, to within one, those that the last forecast counted on."""
        if self.forecast_with is None:
            return False
        decoding_s = max(now_s - self.forecast_at_s - self.forecast_with.prefill_s, 0.0)
        due = max(self.forecast_with.decode_tokens - decoding_s / max(step_s(times, rows), 1e-9), MIN_TOKENS_LEFT)
        return abs(due - max(self.decode_tokens - self.output_tokens, MIN_TOKENS_LEFT)) <= 1.0


@dataclass(slots=True)
class _EdgeQueue:
    times: StepTimes
    slots: int
    entries: dict[str, LedgerEntry] = field(default_factory=dict)  # in the order of dispatch
    num_waiting: int = 0  # entries without an anchor


class Ledger:
    def __init__(self) -> None:
        self._queues: dict[str, _EdgeQueue] = {}
        self._entries: dict[str, LedgerEntry] = {}
        self._changed: set[str] = set()

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    def describe(self, edge_id: str, times: StepTimes, slots: int) -> None:
        """How the edge serves, as far as is known now."""
        queue = self._queues.get(edge_id)
        if queue is None:
            self._queues[edge_id] = _EdgeQueue(times, slots)
        else:
            queue.times, queue.slots = times, slots

    def add(self, entry: LedgerEntry, now_s: float) -> None:
        if entry.task_id in self._entries:
            raise ValueError(f"task {entry.task_id} is already at edge {self._entries[entry.task_id].edge_id}: withdraw it first")
        queue = self._queues[entry.edge_id]
        self._entries[entry.task_id] = queue.entries[entry.task_id] = entry
        queue.num_waiting += entry.anchor_at_s is None
        self._start_next(queue, now_s)
        self._changed.add(entry.edge_id)

    def started(self, task_id: str, now_s: float) -> None:
        entry = self._entries.get(task_id)
        if entry is not None and entry.output_tokens == 0:
            self._queues[entry.edge_id].num_waiting -= entry.anchor_at_s is None
            entry.anchor_at_s = now_s
            self._changed.add(entry.edge_id)

    def progressed(self, task_id: str, output_tokens: int, now_s: float) -> None:
        """Tokens that come when they were due change no forecast: they melt it as time does."""
        entry = self._entries.get(task_id)
        if entry is None:
            return
        queue = self._queues[entry.edge_id]
        queue.num_waiting -= entry.anchor_at_s is None
        entry.output_tokens, entry.anchor_at_s = output_tokens, now_s
        if not entry.as_forecast(queue.times, queue.slots, now_s):
            self._changed.add(entry.edge_id)

    def remove(self, task_id: str, now_s: float) -> LedgerEntry | None:
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return None
        queue = self._queues[entry.edge_id]
        del queue.entries[task_id]
        queue.num_waiting -= entry.anchor_at_s is None
        self._start_next(queue, now_s)
        self._changed.add(entry.edge_id)
        return entry

    def take_changed(self) -> set[str]:
        """Edges whose forecasts changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def num_tasks(self, edge_id: str) -> int:
        queue = self._queues.get(edge_id)
        return len(queue.entries) if queue else 0

    def work(self, now_s: float) -> Mapping[str, Work]:
        """Own work outstanding, of the edges that have any."""
        return {edge_id: _work(queue, now_s) for edge_id, queue in sorted(self._queues.items()) if queue.entries}

    def forecast(self, edge_id: str, others: Work, now_s: float) -> WaitForecast:
        queue = self._queues[edge_id]
        if len(queue.entries) + others.num_tasks < queue.slots:
            return NO_WAIT
        running: list[Remainder] = []
        waiting: list[Remainder] = []
        times, token_s = queue.times, step_s(queue.times, queue.slots)
        for entry in queue.entries.values():
            left = entry.remainder(times, token_s, now_s)
            entry.forecast_at_s, entry.forecast_with = now_s, left
            (waiting if entry.anchor_at_s is None else running).append(left)
        return forecast([*running, *_split(others, queue.times), *waiting], queue.times, queue.slots)

    @staticmethod
    def _start_next(queue: _EdgeQueue, now_s: float) -> None:
        """Slots are filled in the order of dispatch. A first token, once seen, corrects a start that was guessed here."""
        free = min(queue.slots - (len(queue.entries) - queue.num_waiting), queue.num_waiting)
        if free <= 0:
            return
        for entry in queue.entries.values():
            if entry.anchor_at_s is None:
                entry.anchor_at_s = now_s
                queue.num_waiting -= 1
                free -= 1
                if free == 0:
                    return


def _work(queue: _EdgeQueue, now_s: float) -> Work:
    prefill_tokens = decode_tokens = 0.0
    token_s = step_s(queue.times, min(queue.slots, len(queue.entries)))
    for entry in queue.entries.values():
        left = entry.remainder(queue.times, token_s, now_s)
        prefill_tokens += entry.prefill_tokens if left.prefill_s > 0.0 else 0.0
        decode_tokens += left.decode_tokens
    return Work(len(queue.entries), prefill_tokens, decode_tokens)


def _split(others: Work, times: StepTimes) -> list[Remainder]:
    """A sum as equal tasks."""
    if others.num_tasks <= 0:
        return []
    parts = min(others.num_tasks, MAX_OTHER_TASKS)
    reading_s = times.prefill_base_s * others.num_tasks + times.prefill_token_s * others.prefill_tokens
    return [Remainder(reading_s / parts, others.decode_tokens / parts)] * parts
