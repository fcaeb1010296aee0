"""What a re-merge is made of: activation windows, mixes of base profiles, merge plans, and an edge's trigger decision.

Plain values, hashable where they are ids of something. Arrays are numpy, read-only by convention.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]  # (num_layers, num_experts) routed tokens per original expert
Frequencies = NDArray[np.float64]  # (num_layers, num_experts), every row sums to 1 (or is all zero: nothing seen)


@dataclass(frozen=True, slots=True)
class ActivationWindow:
    """Counts of the original experts the router chose, over a window of tasks on one edge and one model version.

    `tasks_by_region` counts those of `num_tasks` whose user region was told.
    """

    edge_id: str
    version: str
    counts: Counts
    num_tasks: int
    start_at_s: float
    end_at_s: float
    tasks_by_region: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ExpertForm:
    """How one expert is held. `bits` 0: not at all; 16: as it is. `units`: hidden units kept. `rank`: of a low-rank correction."""

    bits: int
    units: int
    rank: int = 0


DROPPED = ExpertForm(0, 0)


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """How one MoE layer is merged: `groups` of original expert ids (dominant first), each with merge coefficients that sum to 1.

    `forms`, one a group, say in how many bits, hidden units and ranks each is held; without them all are held as they are. A last group
    whose form is `DROPPED` has experts that nothing answers; their coefficients are 0.
    """

    groups: tuple[tuple[int, ...], ...]
    coefficients: tuple[tuple[float, ...], ...]
    forms: tuple[ExpertForm, ...] = ()

    @property
    def index_map(self) -> tuple[int, ...]:
        """original expert -> group"""
        position = {expert: g for g, group in enumerate(self.groups) for expert in group}
        return tuple(position[e] for e in range(len(position)))

    @property
    def num_kept(self) -> int:
        return len(self.groups) - self.forms.count(DROPPED)


@dataclass(frozen=True, slots=True)
class MergePlan:
    """The whole recipe of a merged model; equal plans have equal ids."""

    base: str  # content id of the base model
    method: str  # merge method, e.g. "m-smoe"
    layers: tuple[LayerPlan, ...]
    recovery_steps: int = 0

    @property
    def plan_id(self) -> str:
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def experts_kept(self) -> int:
        return sum(layer.num_kept for layer in self.layers)


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """Additive calibration statistics of one task type in one MoE layer (they add over tasks exactly)."""

    counts: NDArray[np.float64]  # (num_experts,)
    gram: NDArray[np.float64]  # (num_experts, num_experts) router logits: G^T G over tokens


@dataclass(frozen=True, slots=True)
class BaseProfiles:
    """What calibration of the base model showed, by task type: the vocabulary in which mixes are expressed."""

    base: str
    task_types: tuple[str, ...]
    statistics: Mapping[str, tuple[LayerStatistics, ...]]  # task type -> one a layer

    def frequencies(self, task_type: str) -> Frequencies:
        counts = np.stack([s.counts for s in self.statistics[task_type]])
        return normalised(counts)


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the base profiles that explain a window, snapped to 1/20, and what they leave unexplained (TV, in [0, 1])."""

    shares: Mapping[str, float]
    residual: float = 0.0


@dataclass(frozen=True, slots=True)
class Budget:
    """Memory for weights. Everything an edge keeps: experts by group, and the rest of the model."""

    bytes: int
    non_expert_bytes: int
    expert_bytes: Sequence[int]  # bytes of one expert, by layer, index map and scales included
    reserve_bytes: int = 0


def normalised(counts: NDArray[Any]) -> Frequencies:
    """Rows divided by their sums; an all-zero row stays zero."""
    totals = counts.sum(axis=-1, keepdims=True)
    frequencies: Frequencies = np.zeros(counts.shape, dtype=np.float64)
    np.divide(counts, totals, out=frequencies, where=totals > 0)
    return frequencies
