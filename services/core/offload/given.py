"""Values that stand in for predictions: an oracle's true ones, and predictions with noise that is the same for every policy.

An oracle shows what better predictors could still gain, so no live service has one. Noise is drawn by task and edge, not by call, so that
two policies that are compared see the same errors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np

from services.core.offload.predictors import StepTimePredictor
from services.core.offload.table import Column
from services.core.offload.values import EdgeSnapshot, StepTimes, Task


class GivenValues(Protocol):
    """Each is handed what would be used without it. Waits are asked for first, then what belongs to them."""

    def output_tokens(self, task: Task, predicted: float) -> float: ...

    def queue_wait_s(self, task: Task, edges: Sequence[EdgeSnapshot], uplink_s: Column, predicted: Column) -> Column: ...

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column: ...

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column: ...

    def others_s(self, task: Task, edges: Sequence[EdgeSnapshot]) -> Column | float:
        """Seconds that other tasks lose by this one at each edge: added to its cost. Predictions know of none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class TrueTimes:
    """By edge, of one task: its wait and inference there, and what all other tasks that are known would lose by it."""

    queue_wait_s: Column
    inference_s: Column
    others_s: Column


Times = Callable[[Task, Sequence[EdgeSnapshot], Column], TrueTimes]  # the column is uplink_s


class Oracle:
    """The true answer length of each task by its id, the true quality of an edge's version for a task, and, where `times` are given, its
    true times and what it costs others. Without, times are made of the true lengths and of step times as the edges publish them.
    """

    def __init__(
        self, output_tokens: Mapping[str, float], quality: Callable[[Task, EdgeSnapshot], float], times: Times | None = None
    ) -> None:
        self._output_tokens = output_tokens
        self._quality = quality
        self._times = times
        self._told: tuple[str, TrueTimes] | None = None  # of the task that was asked for last

    def output_tokens(self, task: Task, predicted: float) -> float:
        return self._output_tokens[task.task_id]

    def queue_wait_s(self, task: Task, edges: Sequence[EdgeSnapshot], uplink_s: Column, predicted: Column) -> Column:
        if self._times is None:
            return predicted
        self._told = (task.task_id, self._times(task, edges, uplink_s))
        return self._told[1].queue_wait_s

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column:
        told = self._told_of(task)
        return told.inference_s if told is not None else computed_s

    def others_s(self, task: Task, edges: Sequence[EdgeSnapshot]) -> Column | float:
        told = self._told_of(task)
        return told.others_s if told is not None else 0.0

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column:
        return np.array([self._quality(task, edge) for edge in edges])

    def _told_of(self, task: Task) -> TrueTimes | None:
        return self._told[1] if self._told is not None and self._told[0] == task.task_id else None


class KeyedNoise:
    """Predictions times exp(sd · z - sd²/2) for inference times, plus sd · z for qualities, z by seed, task, edge and quantity."""

    def __init__(self, seed: int, *, inference_sd: float = 0.0, quality_sd: float = 0.0) -> None:
        self._seed = seed
        self._inference_sd = inference_sd
        self._quality_sd = quality_sd

    def output_tokens(self, task: Task, predicted: float) -> float:
        return predicted

    def queue_wait_s(self, task: Task, edges: Sequence[EdgeSnapshot], uplink_s: Column, predicted: Column) -> Column:
        return predicted

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column:
        sd = self._inference_sd
        noisy: Column = computed_s * np.array([math.exp(sd * self._z("t", task, edge) - sd * sd / 2.0) for edge in edges])
        return noisy

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column:
        noise = np.array([self._quality_sd * self._z("q", task, edge) for edge in edges])
        noisy: Column = np.clip(predicted + noise, 0.0, 1.0)
        return noisy

    def others_s(self, task: Task, edges: Sequence[EdgeSnapshot]) -> Column | float:
        return 0.0

    def _z(self, quantity: str, task: Task, edge: EdgeSnapshot) -> float:
        digest = hashlib.blake2b(f"{self._seed}\0{quantity}\0{task.task_id}\0{edge.edge_id}".encode(), digest_size=7).digest()
        return NormalDist().inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2.0**56)


class PublishedStepTimes(StepTimePredictor):
    """Takes the step times of an edge as it publishes them, and learns nothing."""

    def step_times(self, edge_id: str, published: StepTimes) -> StepTimes:
        return published

    def observe(self, edge_id: str, published: StepTimes, prompt_tokens: int, output_tokens: int, rows: float, inference_s: float) -> None:
        """Published values are right."""
