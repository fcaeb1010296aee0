"""What keeping the groups that an edge holds costs in score and saves in bytes: versions of a small model whose scores mean something."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np

from loadgen.bench.swap.sites import PROFILED_ITEMS, Source
from loadgen.bench.swap.versions import drifting
from services.core.merging.recipes import PAPER, PRODUCT
from services.model.build import Builder, BuildOptions, BuildSettings
from services.model.checkpoint import read_base
from services.model.manifest import ModelManifest
from services.model.memory import budget_for
from services.tasks.sources import open_tasks

ALLOCATIONS = (PRODUCT.allocation, PAPER.allocation)
KEEP_GAINS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Means over updates. `keep_gain` None: planned from scratch, as if the edge held nothing."""

    allocation: str
    keep_gain: float | None
    bytes_share: float  # of a full reload
    score: float  # measured, by shares of the mix that a version was built for


def curve(source: Source, fraction: float, num_updates: int, seed: int, tell: Tell, measured_items: int = 64) -> tuple[CurvePoint, ...]:
    """One point an allocation and a weight; all see the same drift."""
    settings = BuildSettings(profiled_items=PROFILED_ITEMS, measured_items=measured_items, cache_limit_bytes=1 << 40)
    with tempfile.TemporaryDirectory(prefix="moedge-curve-") as directory:
        builder = Builder(read_base(source.model), open_tasks(source.tasks, "calibration"), Path(directory), settings)
        mixes = drifting(builder.calibration.profiles.task_types, num_updates + 1, np.random.default_rng(seed))
        points = []
        for allocation, keep_gain in product(ALLOCATIONS, (None, *KEEP_GAINS)):
            told = "planned from scratch" if keep_gain is None else f"a change must gain more than {keep_gain:.0%}"
            tell(f"{fraction:.0%}, {allocation}: {told}")
            points.append(_point(builder, fraction, mixes, allocation, keep_gain))
    return tuple(points)


def _point(builder: Builder, fraction: float, mixes: Sequence[Mapping[str, float]], allocation: str, keep_gain: float | None) -> CurvePoint:
    budget_bytes = _budget_bytes(builder, fraction)
    built: list[ModelManifest] = []
    for mix in mixes:
        options = BuildOptions(allocation=allocation)
        if built and keep_gain is not None:
            options = replace(options, present_version=built[-1].version, keep_gain=keep_gain)
        built.append(builder.build(mix, budget_bytes, options))
    updates = list(pairwise(built))
    shares = [_shipped_share(after, before) for before, after in updates]
    scores = [sum(share * after.quality[task_type] for task_type, share in after.mix.items()) for _, after in updates]
    return CurvePoint(allocation, keep_gain, float(np.mean(shares)), float(np.mean(scores)))


def _budget_bytes(builder: Builder, fraction: float) -> int:
    full = budget_for(builder.base.model, builder.base.full_bytes)
    num_experts = sum(layer.num_experts for layer in builder.base.model.shape.layers)
    return full.non_expert_bytes + round(fraction * num_experts) * max(full.expert_bytes)


def _shipped_share(manifest: ModelManifest, before: ModelManifest) -> float:
    sizes = {blob.digest: blob.size_bytes for blob in manifest.blobs}
    return sum(size for digest, size in sizes.items() if digest not in before.digests) / sum(sizes.values())
