"""One run in virtual time: tasks come, core decides where they go and when edges re-merge, physics says how long it takes.

The offload engine and the merge engine are the ones that run live; nothing here chooses an edge, predicts a wait or triggers an update.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.edge import Edge
from loadgen.simulator.foresight import Column, Foresight
from loadgen.simulator.holdings import Holding, held_at_first
from loadgen.simulator.load import Load
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.sites import edge_sites
from loadgen.simulator.timeline import Priority, Timeline
from loadgen.simulator.updates import Update, Updates
from services.core.offload.candidates import CandidateTable
from services.core.offload.engine import OffloadEngine, offload_engine
from services.core.offload.estimator import OUTPUT_BYTES_PER_TOKEN
from services.core.offload.given import Oracle, TrueTimes
from services.core.offload.values import EdgeSnapshot, EdgeState, NoCandidateError, Observed, Task

DECISIONS, ACTIVATIONS = 10, 11  # generators of a seed
ORACLE, ORACLE_POLICY = "oracle", "onto"  # an upper anchor: ONTO told every length, quality and time


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of each task of the load: NaN where it was rejected. Instants in virtual seconds."""

    load: Load
    edge_ids: tuple[str, ...]
    edge: NDArray[np.int64]  # index of `edge_ids`, -1 where rejected
    at_edge_s: NDArray[np.float64]
    started_at_s: NDArray[np.float64]
    left_at_s: NDArray[np.float64]  # the answer is whole, at the edge
    completed_at_s: NDArray[np.float64]  # and with its user
    predicted_completion_time_s: NDArray[np.float64]
    expected_quality: NDArray[np.float64]  # predicted when it was sent
    quality: NDArray[np.float64]
    updates: tuple[Update, ...]
    num_reports: int
    host_bytes: float = 0.0  # held beside the edges' memory shares, all edges together

    @property
    def completed(self) -> NDArray[np.bool_]:
        done: NDArray[np.bool_] = self.edge >= 0
        return done


def simulate(
    scenario: Scenario,
    load: Load,
    policy: str,
    trigger: str,
    seed: int,
    holding: Holding = "merged",
    make_engine: Callable[..., OffloadEngine] = offload_engine,
) -> Outcome:
    """Equal arguments give equal outcomes. Ends when every task of the load has ended. `make_engine` is called as `offload_engine` is."""
    return _Run(scenario, load, policy, trigger, seed, holding, make_engine).outcome()


class _Run:
    def __init__(
        self,
        scenario: Scenario,
        load: Load,
        policy: str,
        trigger: str,
        seed: int,
        holding: Holding,
        make_engine: Callable[..., OffloadEngine],
    ) -> None:
        self._scenario, self._load = scenario, load
        self._timeline = Timeline()
        self._prompt_tokens, self._output_tokens = load.prompt_tokens.tolist(), load.output_tokens.tolist()
        self._prompt_bytes, self._types, self._regions = load.prompt_bytes.tolist(), load.task_type.tolist(), load.region.tolist()
        self._at_s, self._alpha, self._user = load.at_s.tolist(), load.alpha.tolist(), load.user.tolist()
        self._user_ids = [f"user-{n}" for n in range(max(self._user, default=0) + 1)]
        self._half_call_s = (load.call_s / 2.0).tolist() if load.call_s is not None else [0.0] * len(load)
        known = {t: {t: 1.0} for t in load.task_types}
        unknown = dict.fromkeys(load.task_types, 1.0 / len(load.task_types))
        self._posteriors = [unknown if scenario.hide_task_type else known[t] for t in load.task_types]
        sites = edge_sites(scenario, seed)
        held = held_at_first(scenario, load, sites, seed, holding)
        self._host_bytes = sum(one.runtime.host_bytes for one in held if one.runtime is not None)
        self._edges = [
            Edge(site, one.version, self._prompt_tokens, self._output_tokens, one.runtime) for site, one in zip(sites, held, strict=True)
        ]
        self._index = {site.edge_id: n for n, site in enumerate(sites)}
        self._ways = [[_way(edge, region) for region in load.regions] for edge in self._edges]
        self._true_quality: dict[str, Mapping[str, float]] = {}  # by version
        told = {f"task-{n}": float(tokens) for n, tokens in enumerate(self._output_tokens)} if policy == ORACLE else None
        self._offload = make_engine(
            ORACLE_POLICY if policy == ORACLE else policy,
            quality_scale=scenario.quality_scale,
            rng=np.random.default_rng([seed, DECISIONS]),
            output_tokens=scenario.model.mean_output_tokens(),
            policy_options=dict(scenario.policies.get(policy, {})),
            given=Oracle(told, self._quality_of, self._times_of) if told is not None else None,
        )
        self._foresight = Foresight(self._edges, scenario.updates.load_s) if policy == ORACLE else None
        self._snapshots: tuple[EdgeSnapshot, ...] = ()
        rng = np.random.default_rng([seed, ACTIVATIONS])
        merged = [edge for edge in self._edges if edge.runtime is None]
        self._updates = Updates(scenario, trigger, merged, self._timeline, rng, self._changed)
        self._snapshots = tuple(self._snapshot(edge, 0.0) for edge in self._edges)
        num = len(load)
        self._ids = [f"task-{n}" for n in range(num)]
        self._num_ended = 0
        self._chosen = [-1] * num
        self._version_of: list[str] = [""] * num
        self._at_edge_s, self._started_s, self._left_s, self._completed_s = ([math.nan] * num for _ in range(4))
        self._predicted_s, self._expected, self._quality = ([math.nan] * num for _ in range(3))

    def outcome(self) -> Outcome:
        heap, arrivals, num, n = self._timeline.heap, self._at_s, len(self._at_s), 0
        while self._num_ended < num:
            if n < num and (not heap or heap[0][0] > arrivals[n]):
                self._arrived(n, arrivals[n])
                n += 1
            else:
                at_s, _, _, handler, argument = heapq.heappop(heap)
                handler(argument, at_s)
        return Outcome(
            load=self._load,
            edge_ids=tuple(edge.site.edge_id for edge in self._edges),
            edge=np.array(self._chosen, dtype=np.int64),
            at_edge_s=np.array(self._at_edge_s),
            started_at_s=np.array(self._started_s),
            left_at_s=np.array(self._left_s),
            completed_at_s=np.array(self._completed_s),
            predicted_completion_time_s=np.array(self._predicted_s),
            expected_quality=np.array(self._expected),
            quality=np.array(self._quality),
            updates=tuple(self._updates.log),
            num_reports=self._updates.num_reports,
            host_bytes=self._host_bytes,
        )

    def _arrived(self, n: int, now_s: float) -> None:
        """A user sends a task: core decides, the prompt travels."""
        load, type_index = self._load, self._types[n]
        region = self._regions[n]
        task = Task(
            self._ids[n],
            self._user_ids[self._user[n]],
            load.regions[region],
            None if self._scenario.hide_task_type else load.task_types[type_index],
            self._posteriors[type_index],
            self._alpha[n],
            self._prompt_bytes[n],
            self._prompt_tokens[n],
            self._scenario.max_tokens,
            now_s,
        )
        try:
            decision = self._offload.decide(task, self._snapshots, now_s)
        except NoCandidateError:
            self._num_ended += 1
            return
        index = self._chosen[n] = self._index[decision.chosen[0]]
        table = decision.candidates
        assert isinstance(table, CandidateTable)
        row = index if len(table) == len(self._edges) else [edge.edge_id for edge in table.edges].index(decision.chosen[0])
        self._predicted_s[n], self._expected[n] = table.columns.completion_time_s_of(row), table.columns.quality.item(row)
        latency_s, up_s_per_byte, _ = self._ways[index][region]
        uplink_s = latency_s + self._prompt_bytes[n] * up_s_per_byte + self._half_call_s[n]
        if self._foresight is not None:
            self._foresight.sent(n, index, now_s + uplink_s)
        if uplink_s > 0.0:
            self._timeline.at(now_s + uplink_s, Priority.AT_EDGE, self._at_edge, n)
        else:
            self._at_edge(n, now_s)

    def _at_edge(self, n: int, now_s: float) -> None:
        self._at_edge_s[n] = now_s
        edge = self._edges[self._chosen[n]]
        if self._foresight is not None:
            self._foresight.arrived(n, self._chosen[n])
        if edge.arrived(n, now_s):
            self._timeline.at(edge.turn_at_s, Priority.TURN, self._turn, edge)

    def _turn(self, edge: Edge, now_s: float) -> None:
        if edge.turn_at_s != now_s:  # a nearer boundary was found since
            return
        ended, begun = edge.turn(now_s)
        for n in ended:
            self._ended(n, edge, now_s)
        for n in begun:
            self._started_s[n] = now_s
            version = edge.version
            self._version_of[n] = version.version
            self._quality[n] = version.quality[self._load.task_types[self._types[n]]]
            self._offload.started(self._ids[n], now_s)
        if begun and edge.runtime is not None:
            for n, effect in zip(begun, edge.effects, strict=True):
                self._quality[n] = effect.quality
        if edge.num_running:
            self._timeline.at(edge.turn_at_s, Priority.TURN, self._turn, edge)
        elif not edge.admitting:
            self._updates.drained(edge, now_s)

    def _ended(self, n: int, edge: Edge, now_s: float) -> None:
        type_index, index, output_tokens = self._types[n], self._chosen[n], self._output_tokens[n]
        task_type, version = self._load.task_types[type_index], self._version_of[n]
        queue_wait_s, inference_s = self._started_s[n] - self._at_edge_s[n], now_s - self._started_s[n]
        observed = Observed(queue_wait_s, inference_s, self._prompt_tokens[n], output_tokens, version, task_type)
        self._offload.finished(self._ids[n], observed, now_s)
        region = self._regions[n]
        latency_s, _, down_s_per_byte = self._ways[index][region]
        self._left_s[n] = now_s
        self._completed_s[n] = now_s + latency_s + output_tokens * OUTPUT_BYTES_PER_TOKEN * down_s_per_byte + self._half_call_s[n]
        self._num_ended += 1
        if edge.version.version == version:  # counts of a version that is gone go with it
            edge.counted[type_index] = edge.counted.get(type_index, 0) + 1
            edge.counted_from[region] = edge.counted_from.get(region, 0) + 1
            edge.num_counted += 1
        if self._scenario.draw_scores:
            self._quality[n] = float(self._load.score_draw[n] < self._quality[n])
            self._offload.scored(task_type, version, self._quality[n])

    def _changed(self, edge: Edge, now_s: float) -> None:
        """An edge's version or state is another: brokers see it at once, and what waits there may begin."""
        index = self._index[edge.site.edge_id]
        self._snapshots = (*self._snapshots[:index], self._snapshot(edge, now_s), *self._snapshots[index + 1 :])
        if edge.admitting and edge.look_soon(now_s):
            self._timeline.at(edge.turn_at_s, Priority.TURN, self._turn, edge)

    def _quality_of(self, task: Task, edge: EdgeSnapshot) -> float:
        """Hidden from every policy but the oracle."""
        return self._true_quality[edge.version][self._load.task_types[self._types[int(task.task_id.removeprefix("task-"))]]]

    def _times_of(self, task: Task, edges: Sequence[EdgeSnapshot], uplink_s: Column) -> TrueTimes:
        """Hidden likewise. Edges are in the order of their ids, as here."""
        assert self._foresight is not None
        at_edge_s = task.arrived_at_s + uplink_s
        starts_s, ends_s, lost_s = self._foresight.times(int(task.task_id.removeprefix("task-")), at_edge_s, task.arrived_at_s)
        return TrueTimes(starts_s - at_edge_s, ends_s - starts_s, lost_s)

    def _snapshot(self, edge: Edge, now_s: float) -> EdgeSnapshot:
        site, version = edge.site, edge.version
        self._true_quality[version.version] = version.quality
        unavailable_s = self._updates.unavailable_s(edge, now_s)
        return EdgeSnapshot(
            edge_id=site.edge_id,
            version=version.version,
            state=EdgeState.READY if unavailable_s is None else EdgeState.UPDATING,
            links=site.links,
            quality=version.stated_quality,
            step_times=site.step_times,
            max_batch=site.max_batch,
            max_queue=site.max_queue,
            unavailable_s=unavailable_s or 0.0,
            memory_bytes=version.model_bytes,
        )


def _way(edge: Edge, region: str) -> tuple[float, float, float]:
    """Latency, and seconds a byte up and down."""
    link = edge.site.links.get(region)
    if link is None:
        return 0.0, 0.0, 0.0
    return link.latency_s, link.uplink_s_per_byte, link.downlink_s_per_byte
