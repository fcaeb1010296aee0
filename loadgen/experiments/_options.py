"""Tables IV to VI: one option of JTOM swept on the paper's load, and on that with a mix that changes; the paper's rows beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadgen.experiments._paper import printed
from loadgen.experiments._sweeps import Point, paper_run
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import best_of, holds
from loadgen.reproduce.runs import JTOM, PAPER_SERVERS, Arm, figures_of
from loadgen.reproduce.values import Cell, Claim, Line, Lines, Plot, Result, Table
from loadgen.simulator.figures import Interval, interval
from loadgen.simulator.scenario import scenario

RATE_PER_S = 9.0
QUALITY_WEIGHT, WITHIN = 0.05, 1.0  # of the law that Tables IV and V obey, and how closely, in figures of up to 20,000
CHANGING = "drift"  # the scenario whose changes of mix are used


@dataclass(frozen=True, slots=True)
class Option:
    """`name` as the paper has it, `key` as the trigger has it; `best`: what the paper says is best."""

    table: str  # "table4"
    name: str
    key: str
    best: float

    @property
    def source(self) -> str:
        return {"table4": "Table IV", "table5": "Table V", "table6": "Table VI"}[self.table]


Runs = dict[float, list[dict[str, float]]]  # by value of the option, in the order of the seeds


def swept(context: Context, option: Option) -> tuple[Runs, Runs]:
    """On the paper's load, and with a mix that changes."""
    values = printed(option.table)[option.name]
    values = [values[0], option.best, values[-1]] if context.quick else values
    values = sorted(dict.fromkeys(values))
    points = [Point(value, RATE_PER_S, PAPER_SERVERS) for value in values]
    steady = {p.x: [paper_run(_arm(option, p.x), seed, p, context.quick) for seed in context.few_seeds] for p in points}
    phases = tuple((phase.start, dict(phase.mix)) for phase in scenario(CHANGING).load.phases)
    changing = {value: [replace(run, phases=phases) for run in runs] for value, runs in steady.items()}
    return context.grouped(figures_of, steady), context.grouped(figures_of, changing)


def _arm(option: Option, value: float) -> Arm:
    return replace(JTOM, trigger_options={**JTOM.trigger_options, option.key: value})


def result(context: Context, option: Option, own: Sequence[Claim], findings: Sequence[str]) -> Result:
    """`own`: what the table itself says, judged without any run."""
    steady, changing = swept(context, option)
    best = _best_claim(option, steady, changing)
    spans = [_span(runs) for runs in (steady, changing)]
    told = (
        f"In ours {option.name} moves the process time by {spans[0]:.0%} between its best and its worst value on the paper's load, and by "
        f"{spans[1]:.0%} where the mix changes."
    )
    tables = [_printed_table(option), *(_table(option, name, runs) for name, runs in (("steady", steady), ("changing", changing)))]
    return Result([*findings, told], tables, [_plot(option, steady, changing)], [best, *own])


def _span(runs: Runs) -> float:
    means = [interval([run["process_time_s"] for run in told]).mean for told in runs.values()]
    return max(means) / min(means) - 1.0


def _best_claim(option: Option, steady: Runs, changing: Runs) -> Claim:
    judged = best_of(_apart(steady, option.best))
    found = min(steady, key=lambda value: interval([run["table_cost"] for run in steady[value]]).mean)
    other = min(changing, key=lambda value: interval([run["table_cost"] for run in changing[value]]).mean)
    against = interval([a["table_cost"] - b["table_cost"] for a, b in zip(steady[option.best], steady[found], strict=True)])
    below = f"{against.mean:.0f} ± {against.ci95:.0f} s below {option.best:g}"
    told = f"least at {option.name} = {found:g}, {below}; mix changes: least at {other:g}"
    says = f"{option.name} = {option.best:g} costs least (process time less 0.05 quality, on a load that does not drift)"
    why = "One run stands behind each of the paper's columns; between seeds ours vary as much as between most values."
    return Claim(f"{option.table}-best", option.source, says, f"{option.name} = {option.best:g}", told, judged.verdict, judged.rule, why)


def _apart(runs: Runs, best: float) -> list[Interval]:
    """Paired costs: the claimed best value's less each other's."""
    return [
        interval([a["table_cost"] - b["table_cost"] for a, b in zip(runs[best], told, strict=True)])
        for value, told in runs.items()
        if value != best
    ]


ROWS = (("process_time", "process_time_s"), ("total_quality", "total_quality"), ("weighted_cost", "table_cost"))


def _printed_table(option: Option) -> Table:
    told = printed(option.table)
    rows: tuple[tuple[Cell, ...], ...] = tuple((name.replace("_", " "), *told[name]) for name, _ in ROWS)
    columns = ("", *(f"{option.name} = {value:g}" for value in told[option.name]))
    return Table(f"{option.table}_paper", f"{option.source} of the paper", columns, rows, "Each row as the difference to its least value.")


def _table(option: Option, name: str, runs: Runs) -> Table:
    figures = (*ROWS, ("eq. (1)", "weighted_cost"), ("positive cost", "positive_cost"), ("updates", "updates"))
    rows: list[tuple[Cell, ...]] = []
    for value, of_value in runs.items():
        told = [interval([run[figure] for run in of_value]) for _, figure in figures]
        rows.append((f"{option.name} = {value:g}", *(cell for figure in told for cell in (figure.mean, figure.ci95))))
    units = {"total_quality": "", "updates": ""}
    columns = ("", *(text for title, _ in figures for text in (title.replace("_", " ") + units.get(title, ", s"), "±")))
    title = {"steady": "Ours, on the paper's load", "changing": "Ours, with a mix that changes twice"}[name]
    note = "Weighted cost: process time less 0.05 quality, as the paper's table has it."
    return Table(f"{option.table}_{name}", title, columns, tuple(rows), note)


def _plot(option: Option, steady: Runs, changing: Runs) -> Plot:
    told, theirs, ours = printed(option.table), [], []
    for row, figure in ROWS:
        title, lines = row.replace("_", " "), []
        theirs.append(_panel(f"the paper: {title}", option, [Line("the paper", tuple(told[option.name]), tuple(told[row]))]))
        for label, runs in (("ours, no drift", steady), ("ours, mix changes", changing)):
            values = {value: interval([run[figure] for run in of_value]) for value, of_value in runs.items()}
            least = min(v.mean for v in values.values())
            ys, widths = tuple(v.mean - least for v in values.values()), tuple(v.ci95 for v in values.values())
            lines.append(Line(label, tuple(values), ys, widths))
        ours.append(_panel(f"ours: {title}", option, lines))
    caption = (
        "Each curve as the difference to its least value. The paper's are of one run each; ours are means over seeds with 95 % intervals."
    )
    return Plot(option.table, f"{option.source}, the paper's and ours", caption, (*theirs, *ours))


def _panel(title: str, option: Option, lines: Sequence[Line]) -> Lines:
    return Lines(title, option.name, "above the least" if title.endswith("quality") else "s above the least", tuple(lines))


def off_the_law(table: str) -> list[float]:
    """By column, how far the printed weighted cost lies from process time - 0.05 total quality + constant, with the constant that fits
    most columns."""
    told = printed(table)
    rows = zip(told["weighted_cost"], told["process_time"], told["total_quality"], strict=True)
    differences = [cost - (time_s - QUALITY_WEIGHT * quality) for cost, time_s, quality in rows]
    constant = max(differences, key=lambda value: sum(abs(value - other) <= WITHIN for other in differences))
    return [value - constant for value in differences]


def law_claim(option: Option, off: Sequence[float], why: str) -> Claim:
    obeys = sum(abs(value) <= WITHIN for value in off)
    judged = holds(
        2 * obeys <= len(off),
        f"contradicted: more than half of the columns are process time - 0.05 total quality + constant to ±{WITHIN:g}",
    )
    says, told = (
        "the weighted cost of the table is eq. (1)",
        f"process time - 0.05 total quality + constant fits {obeys} of {len(off)} columns",
    )
    return Claim(f"{option.table}-is-eq1", option.source, says, "eq. (1)", told, judged.verdict, judged.rule, why)
