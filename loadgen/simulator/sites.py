"""Lays out a scenario for one seed: edges with their links, and the model each begins with (reading R19 of the paper: a random task's)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from loadgen.simulator.edge import EdgeSite
from loadgen.simulator.model import SimulatedVersion
from loadgen.simulator.scenario import Area, EdgeGroup, Scenario
from services.core.offload.values import Link, StepTimes

PLACES, FIRST = 20, 21  # generators of a seed


def edge_sites(scenario: Scenario, seed: int) -> tuple[EdgeSite, ...]:
    """By ascending id."""
    sites = []
    for group in scenario.edges:
        for n in range(group.count):
            edge_id = group.name if group.count == 1 else f"{group.name}-{n:03d}"
            times = group.step_times or at_speed(scenario.model.step_times, group.speed)
            sites.append(EdgeSite(edge_id, dict(group.regions), times, group.memory_share, group.max_batch, group.max_queue, group.speed))
    sites.sort(key=lambda site: site.edge_id)
    if scenario.area is None:
        return tuple(sites)
    return _placed(sites, scenario.area, scenario.regions, np.random.default_rng([seed, PLACES]))


def first_versions(scenario: Scenario, sites: tuple[EdgeSite, ...], seed: int) -> tuple[SimulatedVersion, ...]:
    """What each edge serves before any update."""
    rng, types = np.random.default_rng([seed, FIRST]), scenario.model.task_types
    groups = {site.edge_id: group for group in scenario.edges for site in sites if _of_group(site, group)}
    versions = []
    for n, site in enumerate(sites):
        drawn = types[int(rng.integers(len(types)))]
        mix: Mapping[str, float] = {drawn: 1.0}
        if scenario.first_models == "turn":
            mix = {types[n % len(types)]: 1.0}
        elif scenario.first_models == "uniform":
            mix = dict.fromkeys(types, 1.0 / len(types))
        given = groups[site.edge_id].mix
        if given is not None:
            mix = {t: share / sum(given.values()) for t, share in sorted(given.items())}
        versions.append(scenario.model.version(mix, site.memory_share))
    return tuple(versions)


def at_speed(times: StepTimes, speed: float) -> StepTimes:
    return StepTimes(times.step_base_s / speed, times.step_row_s / speed, times.prefill_base_s / speed, times.prefill_token_s / speed)


def _of_group(site: EdgeSite, group: EdgeGroup) -> bool:
    return site.edge_id == group.name if group.count == 1 else site.edge_id.rpartition("-")[0] == group.name


def _placed(sites: list[EdgeSite], area: Area, regions: tuple[str, ...], rng: np.random.Generator) -> tuple[EdgeSite, ...]:
    users, edges = rng.random((len(regions), 2)), rng.random((len(sites), 2))
    far = np.linalg.norm(edges[:, None, :] - users[None, :, :], axis=2)  # (num_edges, num_regions)
    latency_s = area.latency_s + area.latency_s_per_unit * far
    return tuple(
        replace(
            site,
            links={
                region: Link(float(latency_s[n, m]), area.uplink_bytes_per_s, area.downlink_bytes_per_s) for m, region in enumerate(regions)
            },
        )
        for n, site in enumerate(sites)
    )
