"""Theorem 2 without quality, tasks come one by one (procedures V2 and V6); and the live engine beside plain list scheduling."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from loadgen.experiments._bounds_drawn import MIN_TIME_S, MU, NUM_EDGES, PREDICTIONS, Drawn, Figures, arrivals, instance, ratios
from loadgen.experiments._feedback import place_with_feedback
from loadgen.experiments._makespan import Seconds, competitive_ratio, least_makespan_s, optimal_places
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_every_point
from loadgen.reproduce.values import Cell, Claim, Result, Table
from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Scenario
from loadgen.simulator.simulation import ORACLE, simulate
from loadgen.simulator.stated import StatedModel, StatedOptions

UTILISATIONS = (0.26, 0.5, 0.9, 1.2, 2.0)
PER_EDGE = (2, 5, 20, 100)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The tasks come at random instants (Poisson), as many as the edges can do times `utilisation`; finished ones leave the sums."""

    drawn: Drawn
    utilisation: float


def against_bound(given: Loaded) -> Figures:
    """Ends over the lower bound for arrivals. `late`: by how many mean times it ends after that bound."""
    drawn, late = given.drawn, []

    def ratio(rng: np.random.Generator) -> float:
        arrived_at_s, times_s, end_s = _played(given, rng)
        least_s = least_makespan_s(times_s, drawn.num_edges, arrived_at_s)
        late.append((end_s - least_s) / drawn.mean_time_s)
        return end_s / least_s

    return {**ratios(drawn, ratio), "late": float(np.mean(late))}


def against_optimum(given: Loaded) -> Figures:
    """Ends over the exact optimum of a schedule that knows every arrival."""

    def ratio(rng: np.random.Generator) -> float:
        arrived_at_s, times_s, end_s = _played(given, rng)
        return end_s / optimal_places(times_s, np.zeros((len(times_s), given.drawn.num_edges)), arrived_at_s)[0]

    return ratios(given.drawn, ratio)


def engine_beside_model(given: Loaded) -> Figures:
    """The live engine in the simulator, and list scheduling as the proofs have it, on the same tasks.

    `oracle` is told every time. `onto` has its moving average of answer lengths, the model beside it the constant mean.
    """
    drawn = given.drawn
    mean_tokens = (drawn.mu + 1.0) / 2.0  # a token takes t_min
    stated = StatedOptions(("a",), output_tokens=mean_tokens, output_distribution="uniform", step_base_s=MIN_TIME_S, prompt_bytes=0)
    rate_per_s = given.utilisation * drawn.num_edges / drawn.mean_time_s
    edges = (EdgeGroup("edge", count=drawn.num_edges, max_batch=1, max_queue=10 * drawn.num_tasks),)
    made = Scenario("bounds", "", StatedModel(stated), edges, LoadOptions(rate_per_s), drawn.num_tasks / rate_per_s, quality_scale=0.0)
    load = draw_load(made, drawn.seed)
    times_s = load.output_tokens.astype(np.float64) * MIN_TIME_S
    figures: Figures = {}
    # What is predicted may run out before the task ends, and then leaves a step; what is known does not.
    constant_s = np.full(len(load), drawn.mean_time_s)
    for policy, predicted_s, least_left_s in ((ORACLE, times_s, 0.0), ("onto", constant_s, MIN_TIME_S)):
        run = simulate(made, load, policy, "never", drawn.seed)
        places, completed_at_s = place_with_feedback(load.at_s, times_s, predicted_s, drawn.num_edges, least_left_s=least_left_s)
        figures[f"{policy}_alike"] = float(np.mean(run.edge == places))
        figures |= _ended(f"{policy}_engine", load, run.completed_at_s, times_s, drawn.num_edges)
        figures |= _ended(f"{policy}_model", load, completed_at_s, times_s, drawn.num_edges)
    return figures


def with_arrivals(context: Context) -> Result:
    runs, per_edge = (2, PER_EDGE[:2]) if context.quick else (12, PER_EDGE)
    loaded = [Loaded(_drawn(p, n, runs), u) for p in PREDICTIONS for u in UTILISATIONS for n in per_edge]
    found = dict(zip(loaded, context.map(against_bound, loaded), strict=True))
    few = [Loaded(replace(_drawn(p, 3, 2 * runs), num_edges=3), u) for p in PREDICTIONS for u in (0.9, 2.0)]
    exact = dict(zip(few, context.map(against_optimum, few), strict=True))
    engine_per_edge = 5 if context.quick else 50
    engine = [Loaded(Drawn("true", engine_per_edge, seed=seed), u) for u in (0.5, 0.9, 2.0) for seed in range(2)]
    beside = dict(zip(engine, context.map(engine_beside_model, engine), strict=True))
    tables = [_bound_table(found), _exact_table(exact), _engine_table(beside)]
    return Result(_findings(found, beside), tables, claims=[_claim(found)])


def _drawn(prediction: str, per_edge: float, runs: int) -> Drawn:
    """The hardest times for the two predictions that know nothing of them."""
    return Drawn(prediction, per_edge, two_point=prediction in ("constant", "inverted"), runs=runs)


def _played(given: Loaded, rng: np.random.Generator) -> tuple[Seconds, Seconds, float]:
    times_s, predicted_s = instance(given.drawn, rng)
    arrived_at_s = arrivals(given.drawn, given.utilisation, rng)
    _, completed_at_s = place_with_feedback(arrived_at_s, times_s, predicted_s, given.drawn.num_edges)
    return arrived_at_s, times_s, float(completed_at_s.max())


def _ended(name: str, load: Load, completed_at_s: Seconds, times_s: Seconds, num_edges: int) -> Figures:
    ratio = float(completed_at_s.max()) / least_makespan_s(times_s, num_edges, load.at_s)
    return {f"{name}_ratio": ratio, f"{name}_mean_s": float((completed_at_s - load.at_s).mean())}


def _bound_table(found: dict[Loaded, Figures]) -> Table:
    rows = tuple(
        (g.drawn.prediction, g.utilisation, int(g.drawn.per_edge), told["mean"], told["max"], told["above"], told["late"])
        for g, told in found.items()
    )
    columns = ("predictions", "utilisation", "tasks an edge", "mean ratio", "greatest", "share above the bound", "late by mean times")
    note = (
        f"mu = {MU:g}, {NUM_EDGES} edges, bound {competitive_ratio(MU):.3f}; times uniform, or of two lengths for constant and "
        "inverted predictions. Below a utilisation of 1 the last arrival sets the end of any schedule, so a ratio near 1 says little; "
        "what is lost is in the last column."
    )
    return Table("arrivals", "End over the lower bound, tasks come one by one, finished ones leave", columns, rows, note)


def _exact_table(exact: dict[Loaded, Figures]) -> Table:
    rows = tuple((g.drawn.prediction, g.utilisation, told["mean"], told["max"], told["above"]) for g, told in exact.items())
    columns = ("predictions", "utilisation", "mean ratio", "greatest", "share above the bound")
    return Table("arrivals_exact", "End over the exact optimum: nine tasks that come one by one, three edges", columns, rows)


def _engine_table(beside: dict[Loaded, Figures]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for given, told in beside.items():
        for policy in (ORACLE, "onto"):
            keys = (f"{policy}_{key}" for key in ("alike", "engine_ratio", "model_ratio", "engine_mean_s", "model_mean_s"))
            rows.append((policy, given.utilisation, given.drawn.seed, *(told[key] for key in keys)))
    columns = ("predictions", "utilisation", "seed", "placed alike", "engine: ratio", "model: ratio", "engine: mean s", "model: mean s")
    per_edge = next(iter(beside)).drawn.per_edge
    note = f"About {per_edge:g} tasks an edge, {NUM_EDGES} edges, one task at a time. Mean seconds from arrival to completion."
    return Table("engine", "The engine that runs live beside plain list scheduling, on the same tasks", columns, tuple(rows), note)


def _claim(found: dict[Loaded, Figures]) -> Claim:
    judged = at_every_point(sum(told["above"] == 0.0 for told in found.values()), len(found))
    above = [f"{g.drawn.prediction} at {g.utilisation:g} with {g.drawn.per_edge:g} an edge" for g, t in found.items() if t["above"]]
    return Claim(
        "theorem2-arrivals",
        "Theorem 2",
        f"without quality, tasks that come one by one at utilisations of {UTILISATIONS[0]} to {UTILISATIONS[-1]} end within 2 mu/(mu + 1)",
        f"ratio at most {competitive_ratio(MU):.3f}",
        f"at most {max(told['max'] for told in found.values()):.3f}; above it in some run: {'; '.join(above) or 'nowhere'}",
        judged.verdict,
        judged.rule,
        "Above a utilisation of 1 tasks pile up, and few of them are as few tasks that are there at once.",
    )


def _findings(found: dict[Loaded, Figures], beside: dict[Loaded, Figures]) -> list[str]:
    served = max(told["max"] for given, told in found.items() if given.utilisation < 1.0)
    alike = min(told[f"{ORACLE}_alike"] for told in beside.values())
    off = max(abs(told["onto_engine_mean_s"] / told["onto_model_mean_s"] - 1.0) for told in beside.values())
    return [
        f"With Poisson arrivals below a utilisation of 1 no run ended later than {served:.2f} times the lower bound. The live "
        f"engine is list scheduling: told the times it places {alike:.0%} of tasks alike, and with its own predictions, beside a constant "
        f"one, mean completion times are within {off:.1%}."
    ]
