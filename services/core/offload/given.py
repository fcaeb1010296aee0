"""Values that stand in for predictions: an oracle's true ones, and predictions with noise that is the same for every policy.

An oracle shows what better predictors could still gain, so no live service has one. Noise is drawn by task and edge, not by call, so that
two policies that are compared see the same errors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Protocol

import numpy as np

from services.core.offload.predictors import StepTimePredictor
from services.core.offload.table import Column
from services.core.offload.values import EdgeSnapshot, StepTimes, Task


class GivenValues(Protocol):
    """Each is handed what would be used without it."""

    def output_tokens(self, task: Task, predicted: float) -> float: ...

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column: ...

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column: ...


class Oracle:
    """The true answer length of each task by its id, and the true quality of an edge's version for a task.

    With answer lengths right and step times as the edges have them, inference times and the waits made of them are right too.
    """

    def __init__(self, output_tokens: Mapping[str, float], quality: Callable[[Task, EdgeSnapshot], float]) -> None:
        self._output_tokens = output_tokens
        self._quality = quality

    def output_tokens(self, task: Task, predicted: float) -> float:
        return self._output_tokens[task.task_id]

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column:
        return computed_s

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column:
        return np.array([self._quality(task, edge) for edge in edges])


class KeyedNoise:
    """Predictions times exp(sd · z - sd²/2) for inference times, plus sd · z for qualities, z by seed, task, edge and quantity."""

    def __init__(self, seed: int, *, inference_sd: float = 0.0, quality_sd: float = 0.0) -> None:
        self._seed = seed
        self._inference_sd = inference_sd
        self._quality_sd = quality_sd

    def output_tokens(self, task: Task, predicted: float) -> float:
        return predicted

    def inference_s(self, task: Task, edges: Sequence[EdgeSnapshot], computed_s: Column) -> Column:
        sd = self._inference_sd
        noisy: Column = computed_s * np.array([math.exp(sd * self._z("t", task, edge) - sd * sd / 2.0) for edge in edges])
        return noisy

    def quality(self, task: Task, edges: Sequence[EdgeSnapshot], predicted: Column) -> Column:
        noise = np.array([self._quality_sd * self._z("q", task, edge) for edge in edges])
        noisy: Column = np.clip(predicted + noise, 0.0, 1.0)
        return noisy

    def _z(self, quantity: str, task: Task, edge: EdgeSnapshot) -> float:
        digest = hashlib.blake2b(f"{self._seed}\0{quantity}\0{task.task_id}\0{edge.edge_id}".encode(), digest_size=7).digest()
        return NormalDist().inv_cdf((int.from_bytes(digest, "big") + 0.5) / 2.0**56)


class PublishedStepTimes(StepTimePredictor):
    """Takes the step times of an edge as it publishes them, and learns nothing."""

    def step_times(self, edge_id: str, published: StepTimes) -> StepTimes:
        return published

    def observe(self, edge_id: str, published: StepTimes, prompt_tokens: int, output_tokens: int, rows: float, inference_s: float) -> None:
        """Published values are right."""
