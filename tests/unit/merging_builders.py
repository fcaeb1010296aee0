"""Builders for the merging tests: base profiles, counts drawn from them, reports, engines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from services.core.merging.values import ActivationWindow, BaseProfiles, Budget, LayerStatistics, normalised

TASK_TYPES = ("facts", "pick", "pronoun")


def make_profiles(
    seed: int = 0,
    *,
    task_types: tuple[str, ...] = TASK_TYPES,
    num_layers: int = 4,
    num_experts: int = 8,
    tokens_per_task: float = 20.0,
    concentration: float = 0.2,
) -> BaseProfiles:
    """Each task type uses experts of its own liking; smaller `concentration` makes them differ more."""
    rng = np.random.default_rng(seed)
    statistics = {}
    for task_type in task_types:
        layers = []
        for _ in range(num_layers):
            counts = rng.dirichlet(np.full(num_experts, concentration)) * tokens_per_task
            logits = rng.normal(size=(64, num_experts)) + rng.normal(size=(1, num_experts))
            layers.append(LayerStatistics(counts, logits.T @ logits))
        statistics[task_type] = tuple(layers)
    return BaseProfiles("base-1", task_types, statistics)


def per_task(profiles: BaseProfiles) -> dict[str, np.ndarray]:
    """Expected counts of one task by task type, (num_layers, num_experts)."""
    return {t: np.stack([layer.counts for layer in profiles.statistics[t]]) for t in profiles.task_types}


def make_budget(
    profiles: BaseProfiles, num_kept: int, *, expert_bytes: int = 1_000, rest_bytes: int = 5_000, spare_bytes: int = 0
) -> Budget:
    num_layers = len(profiles.statistics[profiles.task_types[0]])
    return Budget(rest_bytes + num_kept * expert_bytes + spare_bytes, rest_bytes, (expert_bytes,) * num_layers)


def draw_counts(rng: np.random.Generator, expected: Mapping[str, np.ndarray], mix: Mapping[str, float], num_tasks: int) -> np.ndarray:
    """Counts of `num_tasks` tasks of the mix: the types are drawn, then every layer's tokens are."""
    types = sorted(mix)
    drawn = rng.multinomial(num_tasks, [mix[t] for t in types])
    counts = np.zeros(next(iter(expected.values())).shape, dtype=np.int64)
    for task_type, tasks in zip(types, drawn, strict=True):
        frequencies = normalised(expected[task_type])
        tokens = np.round(expected[task_type].sum(axis=1) * tasks).astype(int)
        counts += np.stack([rng.multinomial(n, row / row.sum()) for n, row in zip(tokens, frequencies, strict=True)])
    return counts


def make_report(
    counts: np.ndarray, *, edge_id: str = "edge-a", version: str = "v1", num_tasks: int = 20, at_s: float = 0.0
) -> ActivationWindow:
    return ActivationWindow(edge_id, version, np.asarray(counts, dtype=np.int64), num_tasks, at_s, at_s + 1.0)
