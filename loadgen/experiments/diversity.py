"""Are there always some specialised experts? How far the edges' models are apart, and how many task types are served well, over time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np

from loadgen.experiments import Experiment
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_every_point
from loadgen.reproduce.runs import JTOM, ONTO, OURS, STATIC, Arm, Run, outcome_of, scenario_of
from loadgen.reproduce.values import Cell, Claim, Line, Lines, Plot, Result, Table, Verdict
from loadgen.simulator.figures import Interval, interval
from loadgen.simulator.holdings import held_at_first
from loadgen.simulator.load import draw_load
from loadgen.simulator.sites import edge_sites
from services.core.merging.mix import distance

SCENARIOS = ("stationary", "drift")
LENGTH_S, POINTS = 600.0, 40
WELL = 0.8  # of the score of a model merged for that type alone
ARMS = (OURS, JTOM, Arm("JTOM, product", "onto", "jtom", trigger_options={"mode": "product"}), ONTO, STATIC)

Told = dict[tuple[str, str], list[dict[str, list[float]]]]  # by scenario and arm, in the order of the seeds


def spread_of(run: Run) -> dict[str, list[float]]:
    """At `POINTS` instants: mean total variation between the mixes of two edges, and the share of types that some edge serves well."""
    made = scenario_of(run)
    load, sites, model = draw_load(made, run.seed), edge_sites(made, run.seed), made.model
    held = held_at_first(made, load, sites, run.seed, run.arm.holding)
    mixes: list[Mapping[str, float]] = [one.version.mix for one in held]
    scores = [one.version.quality for one in held]
    index = {site.edge_id: n for n, site in enumerate(sites)}
    best = {t: max(model.version({t: 1.0}, site.memory_share).quality[t] for site in sites) for t in model.task_types}
    updates = list(outcome_of(run, made).updates)
    told: dict[str, list[float]] = {"at": [], "spread": [], "served": []}
    for at_s in np.linspace(0.0, made.duration_s, POINTS):
        while updates and updates[0].at_s <= at_s:
            update = updates.pop(0)
            n = index[update.edge_id]
            mixes[n], scores[n] = update.mix, model.version(update.mix, sites[n].memory_share).quality
        served = sum(max(score[t] for score in scores) >= WELL * best[t] for t in model.task_types)
        told["at"].append(float(at_s))
        told["spread"].append(float(np.mean([distance(one, other) for one, other in combinations(mixes, 2)])))
        told["served"].append(served / len(model.task_types))
    return told


def run(context: Context) -> Result:
    length_s = 60.0 if context.quick else LENGTH_S
    told: Told = context.grouped(
        spread_of,
        {(name, arm.name): [Run(name, arm, seed, length_s) for seed in context.few_seeds] for name in SCENARIOS for arm in ARMS},
    )
    return Result(_findings(told), [_table(told)], [_plot(told)], [always_served(told, "JTOM"), always_served(told, "ours")])


def _mean(told: Told, name: str, arm: str, what: str) -> Interval:
    """Over time; the interval is over seeds."""
    return interval([float(np.mean(of_seed[what])) for of_seed in told[name, arm]])


def always_served(told: Told, arm: str) -> Claim:
    """A point is a run: it counts where at every instant every type has an edge that serves it well."""
    share, runs = _mean(told, "stationary", arm, "served"), told["stationary", arm]
    whole = sum(min(run["served"]) == 1.0 for run in runs)
    judged = at_every_point(whole, len(runs))
    why = (
        "Edges that each merge for what they see converge to one mix on a load of all types alike; a model that keeps one type whole then "
        "keeps the same one on every edge."
        if judged.verdict is not Verdict.REPRODUCED
        else ""
    )
    return Claim(
        f"specialised-{arm}",
        "Sec. V",
        f"with {arm} there is always some edge specialised in each task type (on the paper's load)",
        "always some specialised experts",
        f"throughout in {whole} of {len(runs)} runs; {100 * share.mean:.1f} ± {100 * share.ci95:.1f} % of types at any time",
        judged.verdict,
        judged.rule,
        why,
        headline=arm == "JTOM",
    )


def _findings(told: Told) -> list[str]:
    sentences = []
    for name in SCENARIOS:
        shares = ", ".join(f"{arm.name} {_mean(told, name, arm.name, 'served').mean:.0%}" for arm in ARMS)
        sentences.append(
            f"On {name}, share of task types that some edge serves well (at least {WELL:.0%} of its own model's score): {shares}."
        )
    return sentences


def _table(told: Told) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for name, arm in told:
        spread, served = _mean(told, name, arm, "spread"), _mean(told, name, arm, "served")
        last = [interval([of_seed[what][-1] for of_seed in told[name, arm]]).mean for what in ("spread", "served")]
        rows.append((name, arm, spread.mean, spread.ci95, last[0], served.mean, served.ci95, last[1]))
    columns = ("scenario", "arm", "spread of mixes", "±", "at the end", "types served well", "±", "at the end of the run")
    return Table(
        "diversity", "Spread of the edges' models, means over time", columns, tuple(rows), "Spread: total variation of two edges' mixes."
    )


def _plot(told: Told) -> Plot:
    panels = []
    for name in SCENARIOS:
        for title, what in (("spread of mixes", "spread"), ("share of types served well", "served")):
            lines = tuple(_line(told, name, arm.name, what) for arm in ARMS)
            panels.append(Lines(f"{name}: {title}", "time (s)", "", lines))
    caption = "Means over seeds with 95 % intervals. Spread 0: all edges serve the same mix; 1: no two share a task type."
    return Plot("diversity", "The edges' models over time", caption, tuple(panels), across=2)


def _line(told: Told, name: str, arm: str, what: str) -> Line:
    values = [interval(list(at)) for at in zip(*(of_seed[what] for of_seed in told[name, arm]), strict=True)]
    return Line(arm, tuple(told[name, arm][0]["at"]), tuple(v.mean for v in values), tuple(v.ci95 for v in values), arm in ("static",))


EXPERIMENT = Experiment("Always some specialised experts?", "How different the edges' models are and stay.", run)
