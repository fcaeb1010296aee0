"""Arms over a sweep of servers or of rates, paired by seed: figures, tables, plots, and what they show in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.reproduce.context import Context
from loadgen.reproduce.runs import JTOM, ONTO, OURS, PAPER_FORMS, STRONG_FORMS, Arm, Run, figures_of, strongest
from loadgen.reproduce.values import Cell, Line, Lines, Plot, Table
from loadgen.simulator.figures import Interval, interval

ARMS = (JTOM, ONTO, OURS, *PAPER_FORMS, *STRONG_FORMS)
TASKS, SHORTEST_S, LONGEST_S = 4000, 320.0, 2000.0
THEIRS = tuple(arm.name for arm in PAPER_FORMS)
STRONGEST = tuple(arm.name for arm in STRONG_FORMS)
LEADING = ("JTOM", "ONTO", "ours")
PANELS = (
    ("weighted cost, eq. (1) (s a task)", "weighted_cost", False),
    ("process time (s a task)", "process_time_s", True),
    ("mean quality", "total_quality", False),
    ("positive cost (s a task)", "positive_cost", True),
)


@dataclass(frozen=True, slots=True)
class Point:
    """x of a sweep, and the rate and number of servers that it means."""

    x: float
    rate_per_s: float
    num_edges: int


@dataclass(frozen=True)
class Sweep:
    points: tuple[Point, ...]
    runs: dict[tuple[str, float], list[dict[str, float]]]  # by arm and x, in the order of the seeds

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arm for arm, _ in self.runs))

    def values(self, arm: str, x: float, figure: str) -> list[float]:
        """By seed; sums over tasks are given a task."""
        summed = figure in ("weighted_cost", "process_time_s", "total_quality", "table_cost")
        return [run[figure] / (run["tasks"] if summed else 1.0) for run in self.runs[arm, x]]

    def at(self, arm: str, x: float, figure: str) -> Interval:
        return interval(self.values(arm, x, figure))

    def ranked(self, x: float, figure: str, arms: Sequence[str]) -> list[str]:
        """Ascending."""
        return sorted(arms, key=lambda arm: self.at(arm, x, figure).mean)

    def saving(self, arm: str, other: str, figure: str) -> Interval:
        """Per cent that `arm` lies below `other`, a mean over points; the interval is over seeds."""
        apart = [self._apart(arm, other, figure, x) for x in self.xs]
        return interval([sum(of_seed) / len(of_seed) for of_seed in zip(*apart, strict=True)])

    def saving_at(self, arm: str, other: str, figure: str, x: float) -> Interval:
        return interval(self._apart(arm, other, figure, x))

    def _apart(self, arm: str, other: str, figure: str, x: float) -> list[float]:
        pairs = zip(self.values(arm, x, figure), self.values(other, x, figure), strict=True)
        return [100.0 * (1.0 - one / two) for one, two in pairs]

    def normalised_saving(self, arm: str, other: str, figure: str, among: Sequence[str]) -> Interval:
        """The same of values brought to [0, 1] over all algorithms and points, as figures of a paper are."""
        kept = []
        for n in range(len(self.runs[arm, self.xs[0]])):
            table = {(name, x): self.values(name, x, figure)[n] for name in (*among, arm) for x in self.xs}
            low, high = min(table.values()), max(table.values())
            means = {name: sum((table[name, x] - low) / (high - low) for x in self.xs) / len(self.xs) for name in (arm, other)}
            kept.append(100.0 * (1.0 - means[arm] / means[other]) if means[other] > 0 else 0.0)
        return interval(kept)

    @property
    def xs(self) -> tuple[float, ...]:
        return tuple(point.x for point in self.points)


def sweep(context: Context, points: Sequence[Point], arms: Sequence[Arm] = ARMS, model: str = "") -> Sweep:
    """On the paper's load with 18 s an update."""
    points = (points[0], points[-1]) if context.quick else tuple(points)
    wanted = {
        (arm.name, point.x): [paper_run(arm, seed, point, context.quick, model) for seed in context.few_seeds]
        for point in points
        for arm in arms
    }
    return Sweep(points, context.grouped(figures_of, wanted))


def paper_run(arm: Arm, seed: int, point: Point, quick: bool = False, model: str = "") -> Run:
    """About as many tasks at every rate; quality weighs as in eq. (1), a full point a second."""
    duration_s = 300.0 / point.rate_per_s if quick else min(max(TASKS / point.rate_per_s, SHORTEST_S), LONGEST_S)
    return Run("stationary", arm, seed, duration_s, point.rate_per_s, point.num_edges, 1.0, model)


def plots(swept: Sweep, name: str, x_label: str) -> list[Plot]:
    made = []
    for suffix, others, told in (("paper", THEIRS, "as published"), ("strongest", STRONGEST, "in their strongest form")):
        panels = tuple(
            Lines(title, x_label, "", tuple(_line(swept, arm, figure) for arm in (*others, "ONTO", "JTOM", "ours")), log_y)
            for title, figure, log_y in PANELS
        )
        caption = f"The baselines {told}. Means over seeds with 95 % intervals; costs and times a task, so that points can be compared."
        made.append(Plot(f"{name}_{suffix}", f"Baselines {told}", caption, panels, across=2))
    return made


def _line(swept: Sweep, arm: str, figure: str) -> Line:
    told = [swept.at(arm, x, figure) for x in swept.xs]
    return Line(_plain(arm), swept.xs, tuple(v.mean for v in told), tuple(v.ci95 for v in told), arm not in LEADING)


def spoken(swept: Sweep, x_label: str) -> list[str]:
    """What the sweep shows at its two ends, in words, of the arms in their strongest form."""
    told = []
    named = ("ONTO", "JTOM", "ours", strongest("Qual-Greedy"))
    for x in (swept.xs[0], swept.xs[-1]):
        ranked = swept.ranked(x, "positive_cost", (*STRONGEST, "ONTO", "JTOM", "ours"))
        costs = ", ".join(f"{_plain(arm)} {swept.at(arm, x, 'positive_cost').mean:.2f}" for arm in ranked[:4])
        qualities = ", ".join(f"{_plain(arm)} {swept.at(arm, x, 'total_quality').mean:.2f}" for arm in named)
        told.append(
            f"At {x:g} {x_label} the least positive costs (s a task) are {costs}; mean qualities are {qualities}. Baselines are in their "
            "strongest form."
        )
    return told


def tables(swept: Sweep, name: str, x_label: str) -> list[Table]:
    """All figures, one row an arm and a point."""
    figures = (
        "weighted_cost",
        "table_cost",
        "positive_cost",
        "process_time_s",
        "total_quality",
        "completion_p99_s",
        "updates",
        "downtime_s",
    )
    heads = (
        "eq. (1) a task",
        "tables' cost a task",
        "positive cost",
        "process time a task, s",
        "quality",
        "p99 s",
        "updates",
        "downtime s",
    )
    rows: list[tuple[Cell, ...]] = [
        (whole(x), arm, *(cell for figure in figures for cell in _both(swept.at(arm, x, figure)))) for x in swept.xs for arm in swept.arms
    ]
    columns = (x_label, "arm", *(cell for head in heads for cell in (head, "± 95 %")))
    return [_savings_table(swept, name, x_label), Table(f"{name}_all", "Every figure of every arm", columns, tuple(rows))]


def _savings_table(swept: Sweep, name: str, x_label: str) -> Table:
    """Against the baseline that is cheapest at each point."""
    rows: list[tuple[Cell, ...]] = []
    for title, others in (("as published", THEIRS), ("strongest", STRONGEST)):
        for x in swept.xs:
            cheapest = swept.ranked(x, "positive_cost", others)[0]
            told = [swept.saving_at(who, cheapest, "positive_cost", x) for who in LEADING]
            rows.append((title, whole(x), _plain(cheapest), *(cell for value in told for cell in _both(value))))
    columns = ("baselines", x_label, "cheapest", *(text for who in LEADING for text in (f"{who} below it, %", "±")))
    note = (
        "Positive cost, paired by seed; negative: the baseline is cheaper. Means over seeds of ratios, in which one queue that runs away "
        "weighs much; the claims above compare means."
    )
    return Table(f"{name}_savings", "Per cent below the cheapest baseline", columns, tuple(rows), note)


def _plain(arm: str) -> str:
    """The name of a baseline, without its form."""
    return arm.removesuffix(", strongest")


def whole(x: float) -> float | int:
    """A count of servers is no 5.00."""
    return int(x) if x.is_integer() else x


def _both(value: Interval) -> tuple[float, float]:
    return round(value.mean, 4), round(value.ci95, 4)
