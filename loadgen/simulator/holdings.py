"""What the edges of an arm hold: merged models that an update rule may replace, one model for good that needs no adaptation, or what the
server of a published system holds (`runtimes.py`).

Equal bytes for all: an edge's memory share is what a merge may take.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from loadgen.simulator.edge import EdgeSite
from loadgen.simulator.load import Load
from loadgen.simulator.model import SimulatedVersion, alike
from loadgen.simulator.runtimes import EdgeRuntime, edge_runtimes
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.sites import first_versions
from services.core.baselines import Runtime

Holding = Literal[Runtime, "quantised", "static"]


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """By one edge. With a runtime the version is the unmerged model, and no update rule replaces it."""

    version: SimulatedVersion
    runtime: EdgeRuntime | None = None


def held_at_first(scenario: Scenario, load: Load, sites: tuple[EdgeSite, ...], seed: int, holding: Holding) -> tuple[Held, ...]:
    """By edge. merged: the scenario's first models; quantised: the unmerged model at the bits that fit; static: one merge for the average
    mix of the whole load, which nobody knows before it is over, on every edge of its size; else what the runtime of that name holds."""
    model = scenario.model
    match holding:
        case "quantised":
            return tuple(Held(model.quantised(site.memory_share)) for site in sites)
        case "static":
            mix = average_mix(load)
            return tuple(Held(model.version(mix, site.memory_share)) for site in sites)
    unmerged = model.version(alike(model.task_types), 1.0)
    runtimes = edge_runtimes(scenario, load, sites, seed, holding)
    merged = first_versions(scenario, sites, seed)
    return tuple(Held(unmerged, runtime) if runtime else Held(first) for first, runtime in zip(merged, runtimes, strict=True))


def average_mix(load: Load) -> Mapping[str, float]:
    """Shares of the task types over all tasks of the load."""
    shares = np.bincount(load.task_type, minlength=len(load.task_types)) / len(load)
    return {t: float(share) for t, share in zip(load.task_types, shares, strict=True)}
