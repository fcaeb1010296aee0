"""Which half of JTOM brings what: dispatch and merging apart, baselines with and without updates, loads that stay and that drift.

Policies with product settings on the scenarios of `loadgen/scenarios`; ONTO against JTOM also as in the paper, over its rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loadgen.experiments import Experiment
from loadgen.experiments._sweep_claims import CLAIMED, below
from loadgen.experiments._sweeps import Point, Sweep, sweep, whole
from loadgen.experiments.fig4 import POINTS
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import above_zero, at_least
from loadgen.reproduce.runs import JTOM, ONTO, OURS, PAPER_SERVERS, QUANTISED, STATIC, STRONG_FORMS, Arm, Run, figures_of
from loadgen.reproduce.values import Bars, Cell, Claim, Plot, Result, Table
from loadgen.simulator.figures import Interval, interval

LENGTHS_S = {"drift": 480.0, "rotation": 700.0, "regions": 480.0, "stationary": 480.0}
PRODUCT_JTOM = Arm("JTOM", "onto", "jtom", trigger_options={"mode": "product"})
CLASSICAL = tuple(arm for arm in STRONG_FORMS if arm.holding == "merged")  # the others bring their own servers
WITHOUT = tuple(
    replace(arm, name=f"{_short}, no updates", trigger="never", trigger_options={})
    for arm in CLASSICAL
    for _short in (arm.name.partition(",")[0],)
)
ARMS = (OURS, PRODUCT_JTOM, ONTO, STATIC, QUANTISED, *STRONG_FORMS, *WITHOUT)
BASELINES = (*(arm.name for arm in STRONG_FORMS), *(arm.name for arm in WITHOUT))
OTHER_MODELS = ("five-tasks", "roomy")
OTHER_RATES = (1.0, 9.0, 19.0)
FIGURES = ("positive_cost", "weighted_cost", "table_cost", "process_time_s", "mean_quality", "completion_p99_s", "updates", "downtime_s")

Runs = dict[str, dict[str, list[dict[str, float]]]]  # by scenario and arm, in the order of the seeds


def run(context: Context) -> Result:
    runs = _on_scenarios(context)
    paper = sweep(context, POINTS, (JTOM, ONTO, OURS))
    others = {model: _with_model(context, model) for model in OTHER_MODELS}
    claims = [*_jtom_claims(paper, others), _drift_claim(runs), *(_below(runs, name, who) for name in runs for who in ("ours", "JTOM"))]
    tables = [_table(name, told) for name, told in runs.items()]
    return Result(_findings(runs), [*tables, _models_table({"demo": paper, **others})], [_plot(runs)], claims)


def _on_scenarios(context: Context) -> Runs:
    lengths = {name: 40.0 for name in ("drift", "stationary")} if context.quick else LENGTHS_S
    arms = ARMS[:6] if context.quick else ARMS
    wanted = {
        (name, arm.name): [Run(name, arm, seed, length_s) for seed in context.seeds] for name, length_s in lengths.items() for arm in arms
    }
    runs: Runs = {name: {} for name in lengths}
    for (name, arm_name), told in context.grouped(figures_of, wanted).items():
        runs[name][arm_name] = told
    return runs


def _with_model(context: Context, model: str) -> Sweep:
    """JTOM, ONTO and ours on the paper's load with another model, at a few rates."""
    points = tuple(Point(rate, rate, PAPER_SERVERS) for rate in OTHER_RATES)
    return sweep(context, points, (JTOM, ONTO, OURS), model)


def _values(runs: Runs, name: str, arm: str, figure: str) -> list[float]:
    return [told[figure] for told in runs[name][arm]]


def _saved(runs: Runs, name: str, arm: str, other: str, figure: str) -> Interval:
    """Per cent of the other's, paired by seed."""
    pairs = zip(_values(runs, name, arm, figure), _values(runs, name, other, figure), strict=True)
    return interval([100.0 * (1.0 - one / two) for one, two in pairs])


def _told(value: Interval) -> str:
    return f"{value.mean:+.1f} ± {value.ci95:.1f} %"


def _jtom_claims(paper: Sweep, others: dict[str, Sweep]) -> list[Claim]:
    """JTOM against ONTO as the paper puts it, over all rates."""
    quality = _negated(paper.saving("JTOM", "ONTO", "total_quality"))
    cost = paper.normalised_saving("JTOM", "ONTO", "weighted_cost", ("ONTO", "ours"))
    time_s, positive = paper.saving("JTOM", "ONTO", "process_time_s"), paper.saving("JTOM", "ONTO", "positive_cost")
    elsewhere = "; ".join(
        f"{model}: quality {_told(_negated(swept.saving('JTOM', 'ONTO', 'total_quality')))}, process time "
        f"{_told(_negated(swept.saving('JTOM', 'ONTO', 'process_time_s')))}"
        for model, swept in others.items()
    )
    why = (
        "On a load of all types alike every edge is asked for the same mix, and a model that keeps one type whole then keeps the same one "
        f"everywhere. With models whose merges keep several types: {elsewhere}."
    )
    more, less, faster, positive_less = at_least(quality, 30.0), at_least(cost, 8.0), above_zero(time_s), at_least(positive, 8.0)
    source = "Sec. VI, ablation"
    return [
        Claim(
            "jtom-quality", source, "JTOM has 30 % more total quality than ONTO", "+30 %", _told(quality),
            more.verdict, more.rule, why, True,
        ),
        Claim(
            "jtom-cost", source, "JTOM costs 8 % less than ONTO (eq. (1), brought to [0, 1])", "-8 %", _told(_negated(cost)),
            less.verdict, less.rule, "", True,
        ),
        Claim(
            "jtom-positive", source, "JTOM costs 8 % less than ONTO (positive cost)", "-8 %", _told(_negated(positive)),
            positive_less.verdict, positive_less.rule,
        ),
        Claim(
            "jtom-time", source, "JTOM's process time is slightly lower than ONTO's", "slightly lower", _told(_negated(time_s)),
            faster.verdict, faster.rule, "Every update takes 18 s from a server, and ONTO makes none.",
        ),
    ]  # fmt: skip


def _negated(value: Interval) -> Interval:
    return Interval(-value.mean, value.ci95)


def _drift_claim(runs: Runs) -> Claim:
    saved = _saved(runs, "drift", "JTOM", "ONTO", "positive_cost")
    judged = above_zero(saved)
    return Claim(
        "adapts",
        "title, Sec. V",
        "re-merging adapts to changing task distributions (JTOM costs less than ONTO where the mix changes)",
        "never tested: the paper's load does not change",
        f"{_told(saved)} positive cost saved on drift",
        judged.verdict,
        judged.rule,
    )


def _below(runs: Runs, name: str, who: str) -> Claim:
    saved = {other: _saved(runs, name, who, other, "positive_cost") for other in BASELINES if other in runs[name]}
    nearest = min(saved, key=lambda other: saved[other].mean)
    judged = at_least(saved[nearest], CLAIMED)
    says = f"{who} costs at least 16 % less than every baseline on {name} (positive cost)"
    told = f"{below(saved[nearest], nearest)} (the nearest)"
    headline = who == "ours" and name == "drift"
    return Claim(f"below-{name}-{who}", "abstract; product settings", says, "16.0 %", told, judged.verdict, judged.rule, "", headline)


def _findings(runs: Runs) -> list[str]:
    told = []
    for name in runs:
        means = {arm: interval(_values(runs, name, arm, "positive_cost")).mean for arm in runs[name]}
        ranked = sorted(means, key=lambda arm: means[arm])
        told.append(f"On {name} the least positive costs are " + ", ".join(f"{arm} {means[arm]:.3f}" for arm in ranked[:4]) + ".")
    gains = [
        _saved(runs, name, arm.name, without.name, "positive_cost").mean
        for name in runs
        for arm, without in zip(CLASSICAL, WITHOUT, strict=True)
        if without.name in runs[name]
    ]
    if gains:
        told.append(
            f"Giving the four classical baselines updates changes their positive cost by {-max(gains):+.0f} to {-min(gains):+.0f} %."
        )
    return told


def _table(name: str, runs: dict[str, list[dict[str, float]]]) -> Table:
    ranked = sorted(runs, key=lambda arm: interval([told["positive_cost"] for told in runs[arm]]).mean)
    rows: list[tuple[Cell, ...]] = []
    for arm in ranked:
        told = [interval([of_seed[figure] for of_seed in runs[arm]]) for figure in FIGURES]
        rows.append((arm, *(cell for value in told[:2] for cell in (value.mean, value.ci95)), *(value.mean for value in told[2:])))
    heads = ("tables' cost", "process time s", "quality", "p99 s", "updates", "down s")
    return Table(f"ablation_{name}", f"Scenario {name}", ("arm", "positive cost", "±", "eq. (1)", "±", *heads), tuple(rows))


def _models_table(swept: dict[str, Sweep]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for model, told in swept.items():
        for x in told.xs:
            for arm in ("ONTO", "JTOM", "ours"):
                values = [told.at(arm, x, figure) for figure in ("total_quality", "process_time_s", "positive_cost", "weighted_cost")]
                rows.append((model, whole(x), arm, *(cell for value in values for cell in (value.mean, value.ci95))))
    columns = ("model", "tasks a second", "arm", "quality", "±", "process time a task, s", "±", "positive cost", "±", "eq. (1) a task", "±")
    note = "demo: merges keep one type whole; five-tasks: public task types; roomy: stated like Table I, where two or three types fit."
    return Table("models", "JTOM against ONTO on the paper's load, by model", columns, tuple(rows), note)


def _plot(runs: Runs) -> Plot:
    panels = []
    for name, arms in runs.items():
        told = {arm: interval([of_seed["positive_cost"] for of_seed in of_arm]) for arm, of_arm in arms.items()}
        ranked = sorted(told, key=lambda arm: told[arm].mean)
        cap = 4.0 * told[ranked[0]].mean
        shown = [arm for arm in ranked if told[arm].mean <= cap]
        left_out = len(ranked) - len(shown)
        label = "positive cost (s a task)" + (f"; {left_out} above {cap:.1f} not drawn" if left_out else "")
        values, widths = tuple(told[arm].mean for arm in shown), tuple(told[arm].ci95 for arm in shown)
        panels.append(Bars(name, label, tuple(shown), values, widths, _leading(shown)))
    caption = "Positive cost by arm, with 95 % intervals. Baselines in their strongest form, with their update rule and without one."
    return Plot("ablation", "Dispatch and merging apart", caption, tuple(panels), across=2)


def _leading(arms: Sequence[str]) -> tuple[str, ...]:
    return tuple(arm for arm in arms if arm in ("ours", "JTOM", "ONTO"))


EXPERIMENT = Experiment("Ablation: dispatch and merging apart", "Costs with and without updates, on loads that stay and that drift.", run)
