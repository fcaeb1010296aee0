"""What the edges of an arm hold: merged models that an update rule may replace, or one model for good that needs no adaptation.

Equal bytes for all: an edge's memory share is what a merge may take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from loadgen.simulator.edge import EdgeSite
from loadgen.simulator.load import Load
from loadgen.simulator.model import SimulatedVersion
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.sites import first_versions

Holding = Literal["merged", "quantised", "static"]


def held_at_first(scenario: Scenario, load: Load, sites: tuple[EdgeSite, ...], seed: int, holding: Holding) -> tuple[SimulatedVersion, ...]:
    """By edge. merged: the scenario's first models; quantised: the unmerged model at the bits that fit; static: one merge for the average
    mix of the whole load, which nobody knows before it is over, on every edge of its size."""
    match holding:
        case "quantised":
            return tuple(scenario.model.quantised(site.memory_share) for site in sites)
        case "static":
            mix = average_mix(load)
            return tuple(scenario.model.version(mix, site.memory_share) for site in sites)
        case "merged":
            return first_versions(scenario, sites, seed)


def average_mix(load: Load) -> Mapping[str, float]:
    """Shares of the task types over all tasks of the load."""
    shares = np.bincount(load.task_type, minlength=len(load.task_types)) / len(load)
    return {t: float(share) for t, share in zip(load.task_types, shares, strict=True)}
