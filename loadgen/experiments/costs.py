"""What the three costs see: eq. (1) and speed, its sign, and who wins as a point of quality is worth more or fewer seconds."""

from __future__ import annotations

from dataclasses import replace

from scipy.stats import spearmanr

from loadgen.experiments import Experiment
from loadgen.experiments._sweeps import ARMS, STRONGEST, Point, Sweep, paper_run, sweep, whole
from loadgen.experiments.fig4 import POINTS
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_most_points, holds
from loadgen.reproduce.runs import JTOM, ONTO, OURS, PAPER_SERVERS, STRONG_FORMS, figures_of, utilisation
from loadgen.reproduce.values import Cell, Claim, Line, Lines, Plot, Result, Table
from loadgen.simulator.figures import Interval, interval

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
POINT = Point(9.0, 9.0, PAPER_SERVERS)
SWEPT = (OURS, JTOM, ONTO, *STRONG_FORMS)
STABLE = 0.7  # utilisation below which queues stay short

Scaled = dict[tuple[str, float], list[dict[str, float]]]  # by arm and quality scale


def run(context: Context) -> Result:
    swept, scaled = sweep(context, POINTS), _scaled(context)
    stable = [x for x in swept.xs if utilisation(x, PAPER_SERVERS) <= STABLE]
    ranks = {x: _ranks(swept, x) for x in stable}
    negative = sum(swept.at(arm.name, x, "weighted_cost").mean < 0 for arm in ARMS for x in swept.xs)
    claims = [_speed_claim(ranks), _sign_claim(negative, len(ARMS) * len(swept.xs))]
    return Result(_findings(swept, scaled, stable), [_ranks_table(ranks), _scales_table(scaled)], [_plot(scaled)], claims)


def _scaled(context: Context) -> Scaled:
    scales = SCALES[1:3] if context.quick else SCALES
    wanted = {
        (arm.name, scale): [replace(paper_run(arm, seed, POINT, context.quick), quality_scale=scale) for seed in context.few_seeds]
        for scale in scales
        for arm in SWEPT
    }
    return context.grouped(figures_of, wanted)


def _ranks(swept: Sweep, x: float) -> tuple[float, float]:
    """Rank correlation over arms of eq. (1) with process time, and with the quality that is missing."""
    costs, times_s, qualities = (
        [swept.at(arm, x, figure).mean for arm in swept.arms] for figure in ("weighted_cost", "process_time_s", "total_quality")
    )
    return float(spearmanr(costs, times_s).statistic), float(spearmanr(costs, [-q for q in qualities]).statistic)


def _speed_claim(ranks: dict[float, tuple[float, float]]) -> Claim:
    judged = at_most_points(sum(abs(time_s) >= abs(quality) for time_s, quality in ranks.values()), len(ranks))
    times, qualities = [time_s for time_s, _ in ranks.values()], [quality for _, quality in ranks.values()]
    spans = [f"{min(values):+.2f} to {max(values):+.2f}" for values in (times, qualities)]
    told = f"rank correlation with process time {spans[0]}, with quality {spans[1]}"
    return Claim(
        "eq1-sees-speed",
        "eq. (1)",
        "the weighted cost weighs completion time against quality",
        "not stated",
        told,
        judged.verdict,
        judged.rule + f" (a point is a rate up to {STABLE:.0%} load at which eq. (1) ranks arms by time as much as by quality)",
        "While queues are stable the last completion is about the end of the trace, whoever dispatches: of all times eq. (1) sees one.",
    )


def _sign_claim(negative: int, points: int) -> Claim:
    judged = holds(negative == 0, "contradicted: some weighted cost, eq. (1), is negative")
    return Claim(
        "eq1-ratios",
        "eq. (1), Sec. VI",
        "weighted costs can be compared in per cent, and have a competitive ratio",
        "16.0 %",
        f"negative at {negative} of {points} arms and rates",
        judged.verdict,
        judged.rule,
        "Per cent of a figure that may be 0 or below mean nothing; they are taken of the positive cost, or of costs brought to [0, 1].",
    )


def _findings(swept: Sweep, scaled: Scaled, stable: list[float]) -> list[str]:
    x = stable[-1]
    slowest, best = swept.ranked(x, "process_time_s", swept.arms)[-1], swept.ranked(x, "weighted_cost", swept.arms)
    fastest = swept.ranked(x, "process_time_s", swept.arms)[0]
    slow, fast = swept.at(slowest, x, "process_time_s").mean, swept.at(fastest, x, "process_time_s").mean
    scales = sorted({scale for _, scale in scaled})
    told = ", ".join(f"{scale:g}: {_cheapest(scaled, scale)}" for scale in scales)
    return [
        f"At {x:g} tasks a second {slowest} takes {slow:.1f} s a task and {fastest} {fast:.2f} s; by eq. (1) they take "
        f"places {best.index(slowest) + 1} and {best.index(fastest) + 1} of {len(best)}.",
        f"The arm with the least positive cost by what a full point of quality is worth in seconds: {told}.",
    ]


def _cheapest(scaled: Scaled, scale: float) -> str:
    return min((arm.name for arm in SWEPT), key=lambda arm: _cost(scaled, arm, scale).mean)


def _cost(scaled: Scaled, arm: str, scale: float) -> Interval:
    return interval([told["positive_cost"] for told in scaled[arm, scale]])


def _ranks_table(ranks: dict[float, tuple[float, float]]) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple((whole(x), round(time_s, 2), round(quality, 2)) for x, (time_s, quality) in ranks.items())
    note = "Spearman's rank correlation over all arms of Fig. 4; 1: eq. (1) ranks them as that does."
    return Table("ranks", "What eq. (1) ranks by", ("tasks a second", "process time", "missing quality"), rows, note)


def _scales_table(scaled: Scaled) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm, scale in sorted(scaled, key=lambda key: (key[1], _cost(scaled, *key).mean)):
        told = {
            figure: interval([run[figure] for run in scaled[arm, scale]])
            for figure in ("mean_quality", "completion_mean_s", "completion_p99_s", "updates")
        }
        cost = _cost(scaled, arm, scale)
        rows.append((scale, arm, cost.mean, cost.ci95, *(value.mean for value in told.values())))
    columns = ("quality scale, s", "arm", "positive cost", "± 95 %", "quality", "completion mean, s", "p99 s", "updates")
    return Table("scales", "What a point of quality is worth", columns, tuple(rows))


def _plot(scaled: Scaled) -> Plot:
    scales = sorted({scale for _, scale in scaled})
    panels = []
    for title, figure, log_y in (
        ("positive cost (s a task)", "positive_cost", True),
        ("mean quality", "mean_quality", False),
        ("p99 completion (s)", "completion_p99_s", True),
    ):
        lines = []
        for arm in (*STRONGEST, "ONTO", "JTOM", "ours"):
            told = [interval([run[figure] for run in scaled[arm, scale]]) for scale in scales]
            ys, widths = tuple(v.mean for v in told), tuple(v.ci95 for v in told)
            lines.append(Line(arm.removesuffix(", strongest"), tuple(scales), ys, widths, arm in STRONGEST))
        panels.append(Lines(title, "seconds that a point of quality is worth", "", tuple(lines), log_y, log_x=True))
    caption = (
        f"{POINT.rate_per_s:g} tasks a second on ten servers, baselines in their strongest form. "
        "Policies that look at quality are told what it is worth."
    )
    return Plot("scales", "What a point of quality is worth", caption, tuple(panels))


EXPERIMENT = Experiment("Three costs", "What eq. (1), the tables' cost and the positive cost see.", run)
