"""How long steps took at the edges of a live run, from what their workers published and measured. Predicts no wait and no decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from statistics import fmean

from loadgen.results import EdgeDescription, EdgeSample, Finished
from loadgen.simulator.errors import SimulationInputError
from loadgen.simulator.sites import at_speed
from services.core.offload.values import StepTimes

SAME_TURN_S = 0.002  # tasks that begin within so long had their prompts read together


@dataclass(frozen=True, slots=True)
class _Served:
    """A task in the batch of its edge, on the load generator's clock."""

    task: Finished
    from_s: float
    until_s: float


def step_times(edge: EdgeDescription, samples: Sequence[EdgeSample], completed: Sequence[Finished]) -> StepTimes:
    """Two lines for the whole run: of the shape that the worker fitted, at the height that its tasks' inference times had.

    The fits alone lag behind: they begin with an idle edge's times, and a machine that is shared changes. What a fit says that the tasks
    of the run should have taken, in the company that each had in its batch, is therefore compared with what they took.
    """
    published = [sample.step_times for sample in samples if sample.edge_id == edge.edge_id and sample.step_times is not None]
    if not published:
        raise SimulationInputError(f"the run has no step times of edge {edge.edge_id}: replay it again with --out")
    fitted = StepTimes(*(fmean(getattr(one, field.name) for one in published) for field in fields(StepTimes)))
    batch = [_served(task) for task in completed if task.edge_id == edge.edge_id]
    said_s = sum(_said_s(served, batch, fitted) for served in batch)
    took_s = sum(served.task.inference_s for served in batch)
    return at_speed(fitted, said_s / took_s) if said_s > 0.0 and took_s > 0.0 else fitted


def _served(task: Finished) -> _Served:
    """Half of what is neither wait nor computing was the way back."""
    until_s = task.end_at_s - task.beside_computing_s / 2.0
    return _Served(task, until_s - task.inference_s, until_s)


def _said_s(served: _Served, batch: Sequence[_Served], times: StepTimes) -> float:
    """Prompts that are read while the task is in the batch halt it; a step takes as long as the tasks that are in it make it take."""
    decodes_at_s = served.from_s + times.prefill_base_s + times.prefill_token_s * served.task.prompt_tokens
    decoding_s = max(served.until_s - decodes_at_s, 1e-9)
    rows, tokens, begins = 0.0, 0, [served.from_s]
    for other in batch:
        rows += max(min(served.until_s, other.until_s) - max(decodes_at_s, other.from_s), 0.0) / decoding_s
        if served.from_s - SAME_TURN_S < other.from_s < served.until_s - SAME_TURN_S:
            tokens += other.task.prompt_tokens
            begins.append(max(other.from_s, served.from_s))
    begins.sort()
    num_turns = 1 + sum(later - earlier > SAME_TURN_S for earlier, later in pairwise(begins))
    reading_s = num_turns * times.prefill_base_s + tokens * times.prefill_token_s
    return reading_s + served.task.output_tokens * (times.step_base_s + times.step_row_s * rows)
