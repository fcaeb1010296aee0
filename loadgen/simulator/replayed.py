"""A live run as a scenario and a load: the very tasks that were sent, on edges as they were listed. Runs nothing and compares nothing.

What no listing tells is taken from what the run showed: how long steps and updates took, and each task's calls beside links and computing.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from loadgen.results import EdgeDescription, Finished, ReplayResult
from loadgen.simulator.errors import SimulationInputError
from loadgen.simulator.load import Load
from loadgen.simulator.measured import MeasuredModel
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Scenario, UpdateOptions
from loadgen.simulator.service_times import step_times
from services.core.offload.estimator import OUTPUT_BYTES_PER_TOKEN
from services.core.offload.values import Link

SCORES = 900  # generator of a load's score draws
WATCHED_S = 2.0  # for up to so long the controller had been watching when the first task came; a run does not tell how long
GOLDEN = 0.618034  # multiples of it spread evenly over 1, however many there are


def replayed_scenario(run: ReplayResult, model: MeasuredModel, trigger_options: dict[str, object] | None = None) -> Scenario:
    """Edges, links and rules of the run. Raises `SimulationInputError` where the run, or the model's profile, does not tell enough."""
    if run.base_model and model.base_model != run.base_model:
        raise SimulationInputError(
            f"profile is of base model {model.base_model}, the run is of {run.base_model}: make its profile with "
            "python -m loadgen.simulator.measuring, and name it with --profile"
        )
    if not run.completed or not run.edges:
        raise SimulationInputError("the run completed no task, or listed no edge: there is nothing to simulate")
    duration_s = max(record.intended_at_s for record in run.completed) + 1.0
    rules = run.merging
    return Scenario(
        name=run.name,
        about=f"the replay that {run.target} was sent",
        model=model,
        edges=tuple(_group(edge, run, model) for edge in run.edges),
        load=LoadOptions(rate_per_s=len(run.completed) / duration_s),
        duration_s=duration_s,
        quality_scale=run.quality_scale,
        draw_scores=run.scores_sent > 0,
        updates=_updates(run),
        triggers={rules.trigger: dict(rules.options)} if rules is not None else {},
    )


def replayed_load(run: ReplayResult, scenario: Scenario, seed: int) -> Load:
    """The tasks that were completed, each with the length that its answer had. What scores are drawn against differs by seed, and when
    the first task comes: whether a check falls just before or just after a report can decide what an edge is merged for."""
    tasks, model_types = run.completed, scenario.model.task_types
    unknown = sorted({task.task_type for task in tasks} - set(model_types))
    if unknown:
        raise SimulationInputError(f"task type {unknown[0]} of the run is not in the profile, which has {', '.join(model_types)}")
    users = {user_id: n for n, user_id in enumerate(sorted({task.user_id for task in tasks}))}

    def whole(values: Sequence[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return Load(
        task_types=model_types,
        regions=scenario.regions,
        at_s=np.array([task.intended_at_s for task in tasks]) + WATCHED_S * (GOLDEN * seed % 1.0),
        user=whole([users[task.user_id] for task in tasks]),
        region=whole([scenario.regions.index(task.region) for task in tasks]),
        task_type=whole([model_types.index(task.task_type) for task in tasks]),
        alpha=np.array([task.alpha for task in tasks]),
        prompt_bytes=whole([task.prompt_bytes for task in tasks]),
        prompt_tokens=whole([task.prompt_tokens for task in tasks]),
        output_tokens=whole([max(task.output_tokens, 1) for task in tasks]),
        score_draw=np.random.default_rng([seed, SCORES]).random(len(tasks)),
        call_s=np.array([call_s(task, run) for task in tasks]),
    )


def call_s(task: Finished, run: ReplayResult) -> float:
    """What a task took beside links, wait and computing: calls between processes, timers that ran over, pauses of a busy machine."""
    link = next(edge.links.get(task.region) for edge in run.edges if edge.edge_id == task.edge_id)
    return max(task.beside_computing_s - link_s(task, link), 0.0)


def link_s(task: Finished, link: Link | None) -> float:
    """Both ways, as the edges file has them."""
    if link is None:
        return 0.0
    up_s = task.prompt_bytes * link.uplink_s_per_byte
    down_s = task.output_tokens * OUTPUT_BYTES_PER_TOKEN * link.downlink_s_per_byte
    return 2.0 * link.latency_s + up_s + down_s


def _group(edge: EdgeDescription, run: ReplayResult, model: MeasuredModel) -> EdgeGroup:
    own = sorted((sample for sample in run.samples if sample.edge_id == edge.edge_id), key=lambda sample: sample.at_s)
    return EdgeGroup(
        name=edge.edge_id,
        memory_share=model.share_within(edge.memory_bytes),
        max_batch=edge.max_batch,
        max_queue=edge.max_queue,
        regions=edge.links,
        mix=own[0].mix or None,
        step_times=step_times(edge, own, run.completed),
    )


def _updates(run: ReplayResult) -> UpdateOptions:
    """What updates took, in the middle. Builds of several edges wait for one another: that is part of a build here."""
    done = [update for update in run.updates if update.ok and update.swap is not None]
    load_s = median(update.swap.fetch_s + update.swap.load_s for update in done if update.swap) if done else 0.0
    build_s = max(median(update.at_s - update.requested_at_s for update in done) - load_s, 0.0) if done else None
    beside = not any(update.swap.downtime_s > 0.0 for update in done if update.swap)
    rules = run.merging
    if rules is None:
        return UpdateOptions(load_s=load_s, build_s=build_s, beside=beside)
    return UpdateOptions(
        load_s=load_s,
        build_s=build_s,
        beside=beside,
        min_gain=rules.min_gain,
        report_tasks=rules.report_tasks,
        report_interval_s=rules.report_interval_s,
        cool_down_s=rules.cool_down_s,
    )
