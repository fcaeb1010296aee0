"""A live run beside what the simulator predicts of it: the two figures that count, and the parts that they are made of, edge by edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from loadgen.report.numbers import downtimes_s, finished_tasks
from loadgen.results import ReplayResult
from loadgen.simulator.figures import figures
from loadgen.simulator.measured import MeasuredModel
from loadgen.simulator.replayed import call_s, replayed_load, replayed_scenario
from loadgen.simulator.simulation import Outcome, simulate
from services.core.workload.costs import process_time_s, total_quality


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure, live and simulated (the mean over seeds)."""

    live: float
    simulated: float

    @property
    def error(self) -> float:
        """Relative to the live one, signed."""
        return (self.simulated - self.live) / self.live if self.live else float(self.simulated != 0.0)


@dataclass(frozen=True, slots=True)
class EdgeParts:
    """Means over the tasks of one edge. `travel_s` is all that is neither wait nor inference, both ways."""

    tasks: float
    travel_s: float
    queue_wait_s: float
    inference_s: float
    quality: float
    updates: float


@dataclass(frozen=True, slots=True)
class Prediction:
    policy: str
    trigger: str
    seeds: tuple[int, ...]
    num_tasks: int
    num_left_out: int  # tasks of the run that were not completed, and so not simulated
    call_s: float  # mean of what a task took beside links, wait and computing: measured, not predicted
    process_time_s: Pair
    total_quality: Pair
    mean_quality_by_type: dict[str, Pair]
    edges: dict[str, tuple[EdgeParts, EdgeParts]]  # live, simulated

    def as_json(self) -> dict[str, Any]:
        def pair(one: Pair) -> dict[str, float]:
            return {"live": one.live, "simulated": one.simulated, "error": one.error}

        return {
            "schema_version": 1,
            **{name: getattr(self, name) for name in ("policy", "trigger", "num_tasks", "num_left_out", "call_s")},
            "seeds": list(self.seeds),
            "process_time_s": pair(self.process_time_s),
            "total_quality": pair(self.total_quality),
            "mean_quality_by_type": {t: pair(one) for t, one in self.mean_quality_by_type.items()},
            "edges": {edge_id: {"live": asdict(live), "simulated": asdict(sim)} for edge_id, (live, sim) in self.edges.items()},
        }


def predict(
    run: ReplayResult, model: MeasuredModel, trigger: str, seeds: Sequence[int], tell: Callable[[str, int, int], None]
) -> Prediction:
    """`trigger` stands in where the run does not tell its own. Tasks that were not completed are left out of both."""
    scenario = replayed_scenario(run, model)
    trigger = run.merging.trigger if run.merging is not None else trigger
    outcomes = []
    for n, seed in enumerate(seeds):
        tell(f"seed {seed}", n, len(seeds))
        outcomes.append(simulate(scenario, replayed_load(run, scenario, seed), run.policy, trigger, seed))
    told = [figures(outcome, run.quality_scale) for outcome in outcomes]
    live = finished_tasks(run.completed)
    edges = {edge.edge_id: (_live(run, edge.edge_id), _mean([_simulated(one, edge.edge_id) for one in outcomes])) for edge in run.edges}
    return Prediction(
        policy=run.policy,
        trigger=trigger,
        seeds=tuple(seeds),
        num_tasks=len(live),
        num_left_out=run.num_planned - len(live),
        call_s=mean_call_s(run),
        process_time_s=Pair(process_time_s(live, downtimes_s(run)), fmean(one.process_time_s for one in told)),
        total_quality=Pair(total_quality(live).realised, fmean(one.total_quality for one in told)),
        mean_quality_by_type={t: _by_type(run, outcomes, t) for t in run.task_types},
        edges=edges,
    )


def mean_call_s(run: ReplayResult) -> float:
    """How much the machine, and not the edges, had to do with the run."""
    return fmean(call_s(record, run) for record in run.completed)


def _by_type(run: ReplayResult, outcomes: Sequence[Outcome], task_type: str) -> Pair:
    live = [record.score or 0.0 for record in run.completed if record.task_type == task_type]
    load = outcomes[0].load
    of_type = load.task_type == load.task_types.index(task_type)
    return Pair(fmean(live) if live else 0.0, fmean(float(np.nanmean(one.quality[of_type])) for one in outcomes) if live else 0.0)


def _live(run: ReplayResult, edge_id: str) -> EdgeParts:
    own = [record for record in run.completed if record.edge_id == edge_id]
    updates = float(sum(update.ok and update.edge_id == edge_id for update in run.updates))
    if not own:
        return EdgeParts(0.0, 0.0, 0.0, 0.0, 0.0, updates)
    return EdgeParts(
        float(len(own)),
        fmean(record.beside_computing_s for record in own),
        fmean(record.queue_wait_s for record in own),
        fmean(record.inference_s for record in own),
        fmean(record.score or 0.0 for record in own),
        updates,
    )


def _simulated(outcome: Outcome, edge_id: str) -> EdgeParts:
    own = outcome.edge == outcome.edge_ids.index(edge_id)
    updates = float(sum(update.edge_id == edge_id for update in outcome.updates))
    if not own.any():
        return EdgeParts(0.0, 0.0, 0.0, 0.0, 0.0, updates)
    wait_s, inference_s = outcome.started_at_s - outcome.at_edge_s, outcome.left_at_s - outcome.started_at_s
    travel_s = outcome.completed_at_s - outcome.load.at_s - wait_s - inference_s
    travel, wait, inference, quality = (float(column[own].mean()) for column in (travel_s, wait_s, inference_s, outcome.quality))
    return EdgeParts(float(own.sum()), travel, wait, inference, quality, updates)


def _mean(parts: Sequence[EdgeParts]) -> EdgeParts:
    return EdgeParts(*(fmean(column) for column in zip(*(astuple(one) for one in parts), strict=True)))
