"""The ledger: this broker's own tasks at each edge, exactly; what they still need, as predicted. Finished tasks leave.

Other brokers' tasks enter only as a sum (`Work`), passed in where a wait is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.core.offload.values import StepTimes, Work
from services.core.offload.waits import MIN_TOKENS_LEFT, NO_WAIT, WaitForecast, forecast, step_s

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
    number: int = 0  # counts dispatches
    output_tokens: int = 0
    anchor_at_s: float | None = None
    due_at_s: float = 0.0  # the edge's last forecast took this task to have `due_tokens` left then, to decode without a halt
    due_tokens: float | None = None  # None: no forecast saw it run

    def remainder(self, times: StepTimes, token_s: float, now_s: float) -> tuple[float, float]:
        """Seconds of reading its prompt and tokens to decode. Reading A11: predicted minus elapsed, never below a token.
        Tokens that were seen replace what was predicted of them."""
        anchor_at_s = self.anchor_at_s
        if anchor_at_s is None:
            return times.prefill_base_s + times.prefill_token_s * self.prefill_tokens, self.decode_tokens
        elapsed_s = now_s - anchor_at_s if now_s > anchor_at_s else 0.0
        left = self.decode_tokens
        if self.output_tokens == 0:
            reading_s = times.prefill_base_s + times.prefill_token_s * self.prefill_tokens
            if elapsed_s < reading_s:
                return reading_s - elapsed_s, left
            elapsed_s -= reading_s
        else:
            left -= self.output_tokens
        if token_s > 0.0:
            left -= elapsed_s / token_s
        return 0.0, left if left > MIN_TOKENS_LEFT else MIN_TOKENS_LEFT

    def as_forecast(self, token_s: float, now_s: float) -> bool:
        """Whether the tokens seen by now are, to within one, those that the last forecast counted on."""
        if self.due_tokens is None:
            return False
        decoded = max(now_s - self.due_at_s, 0.0) / max(token_s, 1e-9)
        due = max(self.due_tokens - decoded, MIN_TOKENS_LEFT)
        return abs(due - max(self.decode_tokens - self.output_tokens, MIN_TOKENS_LEFT)) <= 1.0


class _EdgeQueue:
    """Own tasks at one edge: those that have slots, and those that wait in the order of dispatch."""

    __slots__ = ("_waiting_tokens", "running", "slots", "times", "token_s", "waiting")

    def __init__(self, times: StepTimes, slots: int) -> None:
        self.running: dict[str, LedgerEntry] = {}
        self.waiting: dict[str, LedgerEntry] = {}
        self._waiting_tokens = 0.0  # of their prompts
        self.describe(times, slots)

    def describe(self, times: StepTimes, slots: int) -> None:
        self.times, self.slots = times, slots
        self.token_s = step_s(times, slots)  # of a full batch

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def add(self, entry: LedgerEntry) -> None:
        self.waiting[entry.task_id] = entry
        self._waiting_tokens += entry.prefill_tokens

    def remove(self, entry: LedgerEntry) -> None:
        if self.running.pop(entry.task_id, None) is None:
            del self.waiting[entry.task_id]
            self._waiting_tokens -= entry.prefill_tokens

    def start(self, entry: LedgerEntry, now_s: float) -> None:
        if entry.anchor_at_s is None:
            self.remove(entry)
            self.running[entry.task_id] = entry
        entry.anchor_at_s = now_s

    def start_next(self, now_s: float) -> None:
        """Slots are filled in the order of dispatch. A first token, once seen, corrects a start that was guessed here."""
        while self.waiting and len(self.running) < self.slots:
            self.start(next(iter(self.waiting.values())), now_s)

    def forecast(self, others: Work, now_s: float) -> WaitForecast:
        times, slots, token_s = self.times, self.slots, self.token_s
        if len(self.running) != slots or others.num_tasks > 0:
            line = self._line(others, now_s)
            first, rest = line[:slots], line[slots:]
            return forecast([tokens for _, tokens in first], _prefill_s(first), [tokens for _, tokens in rest], _prefill_s(rest), token_s)
        tokens, prefill_s = [], 0.0
        for entry in self.running.values():
            reading_s, left = entry.remainder(times, token_s, now_s)
            entry.due_at_s, entry.due_tokens = now_s + reading_s, left
            tokens.append(left)
            prefill_s += reading_s
        waiting = [entry.decode_tokens for entry in self.waiting.values()]
        waiting_prefill_s = times.prefill_base_s * len(waiting) + times.prefill_token_s * self._waiting_tokens
        return forecast(tokens, prefill_s, waiting, waiting_prefill_s, token_s)

    def _line(self, others: Work, now_s: float) -> list[tuple[float, float]]:
        """What each task still needs, in the order of slots. More may run than there are slots where a start was guessed wrong: the first
        dispatched count as running."""
        line = []
        for entry in sorted(self.running.values(), key=lambda entry: entry.number):
            reading_s, left = entry.remainder(self.times, self.token_s, now_s)
            entry.due_at_s, entry.due_tokens = now_s + reading_s, left
            line.append((reading_s, left))
        line += _split(others, self.times)
        return line + [entry.remainder(self.times, self.token_s, now_s) for entry in self.waiting.values()]

    def work(self, now_s: float) -> Work:
        prefill_tokens = decode_tokens = 0.0
        token_s = step_s(self.times, min(self.slots, len(self)))
        for entry in (*self.running.values(), *self.waiting.values()):
            reading_s, left = entry.remainder(self.times, token_s, now_s)
            prefill_tokens += entry.prefill_tokens if reading_s > 0.0 else 0.0
            decode_tokens += left
        return Work(len(self), prefill_tokens, decode_tokens)


class Ledger:
    def __init__(self) -> None:
        self._queues: dict[str, _EdgeQueue] = {}
        self._entries: dict[str, LedgerEntry] = {}
        self._changed: set[str] = set()
        self._num_added = 0

    def __contains__(self, task_id: str) -> bool:
        return task_id in self._entries

    def describe(self, edge_id: str, times: StepTimes, slots: int) -> None:
        """How the edge serves, as far as is known now."""
        queue = self._queues.get(edge_id)
        if queue is None:
            self._queues[edge_id] = _EdgeQueue(times, slots)
        else:
            queue.describe(times, slots)

    def add(self, entry: LedgerEntry, now_s: float) -> None:
        if entry.task_id in self._entries:
            raise ValueError(f"task {entry.task_id} is already at edge {self._entries[entry.task_id].edge_id}: withdraw it first")
        queue = self._queues[entry.edge_id]
        self._num_added += 1
        entry.number = self._num_added
        self._entries[entry.task_id] = entry
        queue.add(entry)
        queue.start_next(now_s)
        self._changed.add(entry.edge_id)

    def started(self, task_id: str, now_s: float) -> None:
        entry = self._entries.get(task_id)
        if entry is not None and entry.output_tokens == 0:
            self._queues[entry.edge_id].start(entry, now_s)
            self._changed.add(entry.edge_id)

    def progressed(self, task_id: str, output_tokens: int, now_s: float) -> None:
        """Tokens that come when they were due change no forecast: they melt it as time does."""
        entry = self._entries.get(task_id)
        if entry is None:
            return
        queue = self._queues[entry.edge_id]
        queue.start(entry, now_s)
        entry.output_tokens = output_tokens
        if not entry.as_forecast(queue.token_s, now_s):
            self._changed.add(entry.edge_id)

    def remove(self, task_id: str, now_s: float) -> LedgerEntry | None:
        entry = self._entries.pop(task_id, None)
        if entry is None:
            return None
        queue = self._queues[entry.edge_id]
        queue.remove(entry)
        queue.start_next(now_s)
        self._changed.add(entry.edge_id)
        return entry

    def take_changed(self) -> set[str]:
        """Edges whose forecasts changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    def num_tasks(self, edge_id: str) -> int:
        queue = self._queues.get(edge_id)
        return len(queue.running) + len(queue.waiting) if queue is not None else 0

    def work(self, now_s: float) -> Mapping[str, Work]:
        """Own work outstanding, of the edges that have any."""
        return {edge_id: queue.work(now_s) for edge_id, queue in sorted(self._queues.items()) if len(queue)}

    def forecast(self, edge_id: str, others: Work, now_s: float) -> WaitForecast:
        queue = self._queues[edge_id]
        if len(queue.running) + len(queue.waiting) + others.num_tasks < queue.slots:
            return NO_WAIT
        return queue.forecast(others, now_s)


def _prefill_s(line: list[tuple[float, float]]) -> float:
    return sum(prefill_s for prefill_s, _ in line)


def _split(others: Work, times: StepTimes) -> list[tuple[float, float]]:
    """A sum as equal tasks."""
    if others.num_tasks <= 0:
        return []
    parts = min(others.num_tasks, MAX_OTHER_TASKS)
    reading_s = times.prefill_base_s * others.num_tasks + times.prefill_token_s * others.prefill_tokens
    return [(reading_s / parts, others.decode_tokens / parts)] * parts
