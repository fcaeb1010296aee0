"""The servers of the simulator's benchmark as SimPy processes: what the simulator is measured beside. Nothing is re-merged here.

Two ways to choose a server: in turn, which decides and predicts nothing, and by the `OffloadEngine` that the simulator has.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import Event

from loadgen.simulator.load import Load
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.sites import edge_sites, first_versions
from services.core.offload.engine import offload_engine
from services.core.offload.values import EdgeSnapshot, EdgeState, Observed, Task


def in_turn(scenario: Scenario, load: Load) -> None:
    """Round robin."""
    environment, step_s = simpy.Environment(), scenario.model.step_times.step_base_s
    servers = [simpy.Resource(environment, capacity=site.max_batch) for site in edge_sites(scenario, 0)]
    output_tokens = load.output_tokens.tolist()

    def task(n: int) -> Generator[Event, object, None]:
        with servers[n % len(servers)].request() as slot:
            yield slot
            yield environment.timeout(output_tokens[n] * step_s)

    def users() -> Generator[Event, object, None]:
        for n, at_s in enumerate(load.at_s.tolist()):
            yield environment.timeout(at_s - environment.now)
            environment.process(task(n))

    environment.process(users())
    environment.run()


class Decided:
    """One run in which ONTO decides. Servers keep the models that they begin with."""

    def __init__(self, scenario: Scenario, load: Load, seed: int = 0) -> None:
        sites = edge_sites(scenario, seed)
        versions = first_versions(scenario, sites, seed)
        self._load, self._max_tokens = load, scenario.max_tokens
        self._environment, self._step_s = simpy.Environment(), scenario.model.step_times.step_base_s
        self._servers = {site.edge_id: simpy.Resource(self._environment, capacity=site.max_batch) for site in sites}
        self._edges = tuple(
            EdgeSnapshot(
                edge_id=site.edge_id,
                version=version.version,
                state=EdgeState.READY,
                links=site.links,
                quality=version.stated_quality,
                step_times=site.step_times,
                max_batch=site.max_batch,
                max_queue=site.max_queue,
            )
            for site, version in zip(sites, versions, strict=True)
        )
        self._version_of = {edge.edge_id: edge.version for edge in self._edges}
        self._engine = offload_engine(
            "onto",
            quality_scale=scenario.quality_scale,
            rng=np.random.default_rng(seed),
            output_tokens=scenario.model.mean_output_tokens(),
        )
        self._types, self._posteriors = load.task_type.tolist(), [{task_type: 1.0} for task_type in load.task_types]
        self._prompt_tokens, self._output_tokens = load.prompt_tokens.tolist(), load.output_tokens.tolist()
        self._prompt_bytes, self._alpha, self._region = load.prompt_bytes.tolist(), load.alpha.tolist(), load.region.tolist()
        self._completed_at_s: NDArray[np.float64] = np.full(len(load), np.nan)

    def run(self) -> NDArray[np.float64]:
        """When each task of the load was done."""
        self._environment.process(self._users())
        self._environment.run()
        return self._completed_at_s

    def _users(self) -> Generator[Event, object, None]:
        for n, at_s in enumerate(self._load.at_s.tolist()):
            yield self._environment.timeout(at_s - self._environment.now)
            self._environment.process(self._task(n))

    def _task(self, n: int) -> Generator[Event, object, None]:
        engine, environment, task_id = self._engine, self._environment, f"task-{n}"
        edge_id = engine.decide(self._made(n, task_id), self._edges, environment.now).chosen[0]
        arrived_at_s = environment.now
        with self._servers[edge_id].request() as slot:
            yield slot
            started_at_s = environment.now
            engine.started(task_id, started_at_s)
            yield environment.timeout(self._output_tokens[n] * self._step_s)
        now_s = self._completed_at_s[n] = environment.now
        waited_s, took_s, version = started_at_s - arrived_at_s, now_s - started_at_s, self._version_of[edge_id]
        task_type = self._load.task_types[self._types[n]]
        engine.finished(task_id, Observed(waited_s, took_s, self._prompt_tokens[n], self._output_tokens[n], version, task_type), now_s)

    def _made(self, n: int, task_id: str) -> Task:
        return Task(
            task_id=task_id,
            user_id="user",
            region=self._load.regions[self._region[n]],
            task_type=self._load.task_types[self._types[n]],
            posterior=self._posteriors[self._types[n]],
            alpha=self._alpha[n],
            prompt_bytes=self._prompt_bytes[n],
            prompt_tokens=self._prompt_tokens[n],
            max_tokens=self._max_tokens,
            arrived_at_s=self._environment.now,
        )
