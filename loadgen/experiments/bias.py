"""Do ONTO's predictions correct their own biases? Step times and answer lengths that are stated wrong, with more and less feedback."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from loadgen.experiments import Experiment
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_every_point
from loadgen.reproduce.runs import ONTO, PAPER_SERVERS, Run, scenario_of, utilisation
from loadgen.reproduce.values import Cell, Claim, Line, Lines, Plot, Result, Table
from loadgen.simulator.figures import Interval, figures, interval
from loadgen.simulator.load import draw_load
from loadgen.simulator.simulation import simulate
from loadgen.simulator.sites import at_speed
from services.core.offload.engine import OffloadEngine
from services.core.offload.estimator import Estimator
from services.core.offload.ledger import Ledger
from services.core.offload.policies import policy
from services.core.offload.predictors import OutputLengthPredictor, Predictors
from services.core.offload.values import Decision, EdgeSnapshot, Observed, Task

RATE_PER_S, LENGTH_S, BINS = 15.0, 400.0, 20
SETTLED = 0.5  # of the run: what remains of a bias is looked at from here on
WITHIN = 0.1  # a bias that is corrected


@dataclass(frozen=True, slots=True)
class Wrong:
    """What the broker is told at first, as multiples of what is true: step times of even and of odd edges, answer lengths."""

    name: str
    even_step: float = 1.0
    odd_step: float = 1.0
    lengths: float = 1.0


@dataclass(frozen=True, slots=True)
class Given:
    wrong: Wrong
    feedback: str  # of `FEEDBACK`
    run: Run


WRONG = (
    Wrong("told right"),
    Wrong("step times halved", 0.5, 0.5),
    Wrong("step times doubled", 2.0, 2.0),
    Wrong("every other edge halved, the others doubled", 0.5, 2.0),
    Wrong("answer lengths doubled", lengths=2.0),
)


class Learning(OffloadEngine):
    """The engine as it is, told wrong step times."""

    wrong = WRONG[0]
    _told: tuple[Sequence[EdgeSnapshot], tuple[EdgeSnapshot, ...]] = ((), ())

    def decide(self, task: Task, edges: Sequence[EdgeSnapshot], now_s: float, tried: frozenset[str] = frozenset()) -> Decision:
        if self._told[0] is not edges:
            factors = (self.wrong.even_step, self.wrong.odd_step)
            told = tuple(replace(edge, step_times=at_speed(edge.step_times, 1.0 / factors[n % 2])) for n, edge in enumerate(edges))
            self._told = (edges, told)
        return super().decide(task, self._told[1], now_s, tried)


class Counting(Learning):
    """Finished tasks leave the queues that it believes in, but teach nothing."""

    def finished(self, task_id: str, observed: Observed, now_s: float) -> None:
        self.withdrawn(task_id, now_s)


class OpenLoop(Counting):
    """Hears of nothing: a task leaves when it was predicted to (reading A11, open loop)."""

    def __init__(self, *parts: object, **others: object) -> None:
        super().__init__(*parts, **others)  # type: ignore[arg-type]
        self._ends: list[tuple[float, str]] = []

    def decide(self, task: Task, edges: Sequence[EdgeSnapshot], now_s: float, tried: frozenset[str] = frozenset()) -> Decision:
        while self._ends and self._ends[0][0] <= now_s:
            self.withdrawn(heapq.heappop(self._ends)[1], now_s)
        decision = super().decide(task, edges, now_s, tried)
        chosen = decision.candidate(decision.chosen[0])
        heapq.heappush(self._ends, (now_s + chosen.completion_time_s - chosen.downlink_s, task.task_id))
        return decision

    def started(self, task_id: str, now_s: float) -> None: ...

    def finished(self, task_id: str, observed: Observed, now_s: float) -> None: ...


FEEDBACK: Mapping[str, type[Learning]] = {"none (open loop)": OpenLoop, "finished tasks leave": Counting, "and teach (ONTO)": Learning}
OPEN, LEAVING, ALL = FEEDBACK


def error_of(given: Given) -> dict[str, Any]:
    """Mean predicted and observed completion time of the tasks that came in each of `BINS` parts of the run, and the run's figures."""
    made = scenario_of(given.run)
    load = draw_load(made, given.run.seed)
    engine: Callable[..., OffloadEngine] = partial(_engine, given)
    outcome = simulate(made, load, ONTO.policy, ONTO.trigger, given.run.seed, make_engine=engine)
    took_s = outcome.completed_at_s - load.at_s
    parts = np.minimum((load.at_s / made.duration_s * BINS).astype(int), BINS - 1)
    predicted, observed = (
        [float(values[parts == n].mean()) for n in range(BINS)] for values in (outcome.predicted_completion_time_s, took_s)
    )
    return {"predicted_s": predicted, "observed_s": observed, **asdict(figures(outcome, made.quality_scale))}


def _engine(
    asked: Given,
    policy_name: str,
    *,
    quality_scale: float,
    rng: np.random.Generator,
    output_tokens: Mapping[str, float],
    policy_options: Mapping[str, object],
    **_: object,
) -> OffloadEngine:
    told = {t: tokens * asked.wrong.lengths for t, tokens in output_tokens.items()}
    predictors = Predictors(output_length=OutputLengthPredictor(told))
    made = FEEDBACK[asked.feedback](policy(policy_name, **policy_options), Estimator(predictors, quality_scale), Ledger(), predictors, rng)
    made.wrong = asked.wrong
    return made


Told = dict[tuple[str, str], list[dict[str, list[float]]]]  # by what is wrong and feedback, in the order of the seeds


def run(context: Context) -> Result:
    length_s = 60.0 if context.quick else LENGTH_S
    runs = [Run("stationary", ONTO, seed, length_s, RATE_PER_S, PAPER_SERVERS, 1.0) for seed in context.few_seeds]
    wanted = {(wrong.name, feedback): [Given(wrong, feedback, run) for run in runs] for wrong in WRONG for feedback in FEEDBACK}
    told: Told = context.grouped(error_of, wanted)
    return Result(_findings(told), [_table(told)], [_plot(told)], [_claim(told)])


def _left(told: Told, wrong: str, feedback: str) -> Interval:
    """What is left of the bias in the settled part: predicted over observed, less 1."""
    first = int(SETTLED * BINS)
    return interval([sum(run["predicted_s"][first:]) / sum(run["observed_s"][first:]) - 1.0 for run in told[wrong, feedback]])


def _claim(told: Told) -> Claim:
    left = {wrong.name: _left(told, wrong.name, ALL) for wrong in WRONG}
    without = {wrong.name: _left(told, wrong.name, OPEN) for wrong in WRONG}
    worst = max(left, key=lambda wrong: abs(left[wrong].mean))
    most = max(without, key=lambda wrong: abs(without[wrong].mean))
    judged = at_every_point(sum(abs(value.mean) <= WITHIN for value in left.values()), len(left))
    return Claim(
        "corrects-itself",
        "Sec. IV",
        "ONTO's continuous prediction corrects its own biases",
        "not measured",
        f"at most {100 * left[worst].mean:+.0f} ± {100 * left[worst].ci95:.0f} % is left with feedback ({worst}), "
        f"{100 * without[most].mean:+.0f} % without ({most})",
        judged.verdict,
        judged.rule + f" (a point is a way to be wrong; true: after half of the run predictions are off by at most {WITHIN:.0%})",
        headline=True,
    )


def _findings(told: Told) -> list[str]:
    cost = {key: interval([float(np.mean(run["positive_cost"])) for run in runs]).mean for key, runs in told.items()}
    mixed = WRONG[3].name
    return [
        f"{RATE_PER_S:g} tasks a second on {PAPER_SERVERS} servers ({utilisation(RATE_PER_S, PAPER_SERVERS):.0%} busy), no updates. With "
        f"{mixed}, the positive cost is {cost[mixed, OPEN]:.2f} in an open loop, {cost[mixed, LEAVING]:.2f} where finished tasks "
        f"leave, and {cost[mixed, ALL]:.2f} where they also teach; told right it is {cost[WRONG[0].name, ALL]:.2f}.",
    ]


def _table(told: Told) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for wrong, feedback in told:
        left = _left(told, wrong, feedback)
        runs = told[wrong, feedback]
        cost, p99_s = (interval([float(np.mean(run[figure])) for run in runs]) for figure in ("positive_cost", "completion_p99_s"))
        rows.append((wrong, feedback, 100 * left.mean, 100 * left.ci95, cost.mean, cost.ci95, p99_s.mean))
    columns = ("told at first", "feedback", "left of the bias, %", "±", "positive cost", "±", "p99 s")
    return Table("bias", "What is left of a bias in the second half of the run", columns, tuple(rows))


def _plot(told: Told) -> Plot:
    panels = []
    for wrong in WRONG[1:]:
        lines = []
        for feedback in FEEDBACK:
            runs = told[wrong.name, feedback]
            ratios = [interval([run["predicted_s"][n] / run["observed_s"][n] for run in runs]) for n in range(BINS)]
            x = tuple((n + 0.5) / BINS for n in range(BINS))
            lines.append(Line(feedback, x, tuple(v.mean for v in ratios), tuple(v.ci95 for v in ratios), feedback != ALL))
        panels.append(Lines(wrong.name, "share of the run", "predicted / observed", tuple(lines), log_y=True))
    caption = "Mean predicted over mean observed completion time of the tasks that came in each twentieth of the run; 1 is right."
    return Plot("bias", "Predictions over time", caption, tuple(panels), across=2)


EXPERIMENT = Experiment("Do predictions correct themselves?", "Predictions that start wrong, with and without feedback.", run)
