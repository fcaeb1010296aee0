"""Routing that a merge can be planned for: even, or as a real trained model routed its calibration items."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadgen.bench.sizes import Sizes
from services.core.merging.values import BaseProfiles, LayerStatistics
from services.model.calibration import calibrate
from services.model.checkpoint import read_base
from services.model.errors import CheckpointError
from services.tasks.scoring import SCORERS
from services.tasks.sources import open_tasks

NUM_ITEMS = 128  # of each task type that the trained model routes
NUM_TOKENS = 1024  # that router logits are made for


def even(base: str, sizes: Sizes, seed: int) -> BaseProfiles:
    """One task type whose tokens use every expert equally; which experts are similar is drawn."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(sizes.num_moe_layers):
        logits = rng.standard_normal((NUM_TOKENS, sizes.num_experts))
        layers.append(LayerStatistics(np.full(sizes.num_experts, float(NUM_TOKENS)), logits.T @ logits))
    return BaseProfiles(base, ("even",), {"even": tuple(layers)})


def measured(base: str, sizes: Sizes, model_dir: Path, tasks: str) -> BaseProfiles:
    """Counts and similarities of a trained model's layers, by task type, as those of the same layers of this one."""
    task_set = open_tasks(tasks, "calibration")
    trained = read_base(model_dir)
    shape = trained.model.shape
    if len(shape.layers) < sizes.num_moe_layers or min(layer.num_experts for layer in shape.layers) < sizes.num_experts:
        raise CheckpointError(f"{model_dir}: fewer layers or experts than the model that is merged; give a model with as many")
    items = {t: task_set.of_type(t)[:NUM_ITEMS] for t in task_set.task_types}
    found = calibrate(trained, items, {t: SCORERS[name] for t, name in task_set.scorers.items()}).profiles
    return BaseProfiles(base, found.task_types, {t: _first(layers, sizes) for t, layers in found.statistics.items()})


def _first(layers: tuple[LayerStatistics, ...], sizes: Sizes) -> tuple[LayerStatistics, ...]:
    n = sizes.num_experts
    return tuple(LayerStatistics(layer.counts[:n], layer.gram[:n, :n]) for layer in layers[: sizes.num_moe_layers])


def equally(profiles: BaseProfiles) -> Mapping[str, float]:
    return dict.fromkeys(profiles.task_types, 1 / len(profiles.task_types))


def logits_of(statistics: LayerStatistics, seed: int) -> NDArray[np.float64]:
    """Router logits of `NUM_TOKENS` tokens, (num_tokens, num_experts), whose Gram matrix is the one given."""
    values, vectors = np.linalg.eigh(statistics.gram)
    root = np.sqrt(np.clip(values, 0.0, None))[:, None] * vectors.T
    basis = np.linalg.qr(np.random.default_rng(seed).standard_normal((NUM_TOKENS, len(values))))[0]
    logits: NDArray[np.float64] = basis @ root
    return logits
