"""Passes recorded once and replayed (CUDA graphs): one launch instead of some hundred, which take longer than what they start.

A recorded pass has one shape, so that nothing in it depends on what it reads; that comes as its inputs. A step works on the first so
many slots of a cache, at its full length: slots among them that are not asked for read another slot's token in passing, and what they
write is past their own tokens. A prefill works on so many tokens, prompt after prompt, whose rest is read likewise. Whatever is read in
passing takes the experts of a token that is asked for, so that no other weights are read for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.model.families.base import ExpertStack, Recorder
from services.model.families.layers import can_replay, check_rows

Numbers = NDArray[np.int64]
Key = tuple[str, int]  # what is recorded, and for how many rows
Routing = tuple[int, Tensor, Tensor, Tensor, Tensor]  # what a `Recorder` is told
Body = Callable[[Tensor, Recorder], Tensor]  # of inputs (num_inputs, num_rows) int64 a number for each row; it asks the device nothing
Run = Callable[[], None]
Record = Callable[[Run], Run]  # runs what it is given at least once, and gives what runs it again on the same memory

RECORDED_AT = 2  # the use at which a shape is recorded: recording takes as long as a few passes
MOST_PACKED = 1024  # tokens of a prefill that are read as one row: scores are of each with each

_has_recorded = threading.local()
_recording = threading.Lock()  # the stream and what libraries keep for it are one for all threads


@runtime_checkable
class ChoiceCounter(Protocol):
    """A recorder to which choices alone matter, of which it may be told from the processor's memory."""

    def count(self, layer: int, chosen: Numbers) -> None:
        """`chosen` of any shape."""
        ...


@dataclass(slots=True)
class Collected:
    """A `Recorder` that keeps what it is told."""

    told: list[Routing] = field(default_factory=list)

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        self.told.append((layer, chosen, logits, inputs, gates))


@dataclass(slots=True)
class _Pass:
    """Its tensors are the same at every run."""

    inputs: Tensor
    num_seen: int = 0
    run: Run | None = None
    made: Tensor | None = None  # what its body gives, then the choices of each layer
    routing: Collected = field(default_factory=Collected)


class Replays:
    """The passes of one model, whose layers have these experts, over one cache. With a `record` of its own every pass is recorded with
    that, whatever the device."""

    def __init__(self, device: torch.device, experts: Sequence[ExpertStack], record: Record | None = None) -> None:
        self._device = device
        self._experts = experts
        self._is_for_all = record is not None
        self._new_record: Callable[[], Record] = (lambda: _Graphs(device).record) if record is None else (lambda: record)
        self._record = self._new_record()
        self._takes: dict[int, bool] = {}
        self._passes: dict[Key, _Pass] = {}
        self._lengths: tuple[int, ...] = ()

    def takes(self, num_tokens: int) -> bool:
        """Whether a pass in which a layer's experts get so many tokens can be recorded."""
        if num_tokens not in self._takes:
            self._takes[num_tokens] = self._is_for_all or all(can_replay(num_tokens, stack.weights) for stack in self._experts)
        return self._takes[num_tokens]

    def run(
        self,
        key: Key,
        body: Body,
        columns: Numbers,
        rows: Sequence[int],
        lengths: tuple[int, ...],
        recorder: Recorder | None,
    ) -> Numbers:
        """What `body` gives for each of `rows`, those that are asked for, of which alone the recorder is told. `columns` are its inputs.

        `lengths` are those of the cache: where they changed, so did its memory, and what was recorded is void.
        """
        if lengths != self._lengths:
            self._passes.clear()
            self._record = self._new_record()
            self._lengths = lengths
        found = self._passes.get(key)
        if found is None:
            found = self._passes[key] = _Pass(torch.tensor(columns, device=self._device))
        else:
            found.inputs.copy_(torch.from_numpy(columns))
        self._run(found, body)
        assert found.made is not None
        if recorder is not None and not isinstance(recorder, ChoiceCounter):
            asked = torch.as_tensor(rows, device=self._device)
            for layer, *told in found.routing.told:
                recorder.record(layer, *(part.index_select(0, asked) for part in told))
        made: Numbers = found.made.cpu().numpy()
        num_rows = columns.shape[1]
        if isinstance(recorder, ChoiceCounter):
            _count(recorder, found.routing, made[num_rows:], rows)
        return made[:num_rows][rows]

    def _run(self, found: _Pass, body: Body) -> None:
        found.num_seen += 1
        if found.run is None:

            def run() -> None:
                found.routing = Collected()
                numbers = body(found.inputs, found.routing)
                found.made = torch.cat([numbers, *(chosen.flatten() for _, chosen, *_ in found.routing.told)])

            if found.num_seen < RECORDED_AT:
                run()
                return
            found.run = self._record(run)
        found.run()


def step_rows(slots: Sequence[int], num_slots: int) -> int:
    """How many slots a step of these is recorded for: the least power of two that holds them, or all."""
    return min(1 << max(slots).bit_length(), num_slots)


def sources(slots: Sequence[int], num_rows: int) -> list[int]:
    """For each row whose token it reads and whose experts it takes: its own, or those of the first that is asked for."""
    asked = set(slots)
    return [row if row in asked else slots[0] for row in range(num_rows)]


@dataclass(frozen=True, slots=True)
class Packed:
    """Prompts one after the other, and what fills up the rest: of the first, but alone, and kept past its end.

    `columns` (5, num_rows): token ids, positions, which prompt each token is of (-1 in the rest), its slot, and the token whose experts
    it takes.
    """

    columns: Numbers
    num_tokens: int  # without the rest

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> Packed:
        check_rows(prompts)
        lengths = [len(prompt) for prompt in prompts]
        num_tokens = sum(lengths)
        columns = np.empty((5, packed_rows(num_tokens)), dtype=np.int64)
        columns[:, num_tokens:] = np.array([prompts[0][0], lengths[0], -1, slots[0], 0])[:, None]
        columns[0, :num_tokens] = np.concatenate([np.asarray(prompt, dtype=np.int64) for prompt in prompts])
        columns[1, :num_tokens] = np.concatenate([np.arange(length) for length in lengths])
        columns[2, :num_tokens] = np.repeat(np.arange(len(prompts)), lengths)
        columns[3, :num_tokens] = np.repeat(np.asarray(slots), lengths)
        columns[4, :num_tokens] = np.arange(num_tokens)
        return cls(columns, num_tokens)

    @property
    def num_rows(self) -> int:
        return int(self.columns.shape[1])

    @property
    def longest(self) -> int:
        """Places that keep what is read, the rest's included."""
        return int(self.columns[1].max()) + 1


def packed_rows(num_tokens: int) -> int:
    """How many tokens a prefill of so many is recorded for: a power of two or one and a half times that, at least 16."""
    power = 1 << max(4, (num_tokens - 1).bit_length())
    return power * 3 // 4 if power > 16 and num_tokens <= power * 3 // 4 else power


def _count(counter: ChoiceCounter, routing: Collected, choices: Numbers, rows: Sequence[int]) -> None:
    start = 0
    for layer, chosen, *_ in routing.told:
        end = start + chosen.numel()
        counter.count(layer, choices[start:end].reshape(chosen.shape)[rows])
        start = end


class _Graphs:
    """CUDA graphs that share the memory for what they compute: they run one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def record(self, body: Run) -> Run:
        """A thread's first is run as it is before, since libraries set up on their first use what must not be recorded."""
        graph = torch.cuda.CUDAGraph()
        serving = torch.cuda.current_stream(self._device)
        with _recording:
            stream = _recording_stream(self._device)
            stream.wait_stream(serving)
            with torch.cuda.stream(stream):
                if not getattr(_has_recorded, "at_all", False):
                    body()
                    _has_recorded.at_all = True
                graph.capture_begin(self._pool, capture_error_mode="thread_local")
                try:
                    body()
                finally:
                    graph.capture_end()
            serving.wait_stream(stream)
        self._pool = graph.pool()
        return graph.replay


@cache
def _recording_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
