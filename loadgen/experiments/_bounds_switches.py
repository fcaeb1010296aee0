"""Proposition 1 (procedure V3): how late JTOM ends when updates stop edges, against a schedule that never updates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadgen.experiments._bounds_drawn import MANY, MIN_TIME_S, MU, NUM_EDGES, Drawn, Figures, arrivals, instance, ratios
from loadgen.experiments._feedback import Switch, place_with_feedback
from loadgen.experiments._makespan import competitive_ratio, least_makespan_s, loads_s, place_by_load
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import Judged, at_every_point
from loadgen.reproduce.values import Claim, Line, Lines, Plot, Result, Table

UPDATE_S = 18.0  # every update of the paper's Table III
PER_EDGE = (2, 10, 20, 50, 100)
SWITCHES = (1, 5, 10, 20)
WHERE = {
    "last": "all on the edge that ends last",
    "any": "edges at random",
    "arrivals": "edges and instants at random, tasks come at a utilisation of 0.9, ONTO knows of each",
}


@dataclass(frozen=True, slots=True)
class Switched:
    """`num_switches` updates. None: each lasts (N/S) · t_min, as Assumption 3 has it. `where`: one of WHERE."""

    drawn: Drawn
    num_switches: int
    lasts_s: float | None
    where: str

    @property
    def switch_s(self) -> float:
        return self.drawn.per_edge * MIN_TIME_S if self.lasts_s is None else self.lasts_s


def against_bound(given: Switched) -> Figures:
    """Ends over the lower bound of a schedule without updates; `above` counts against Proposition 1."""
    play = _with_arrivals if given.where == "arrivals" else _at_once
    return ratios(given.drawn, lambda rng: play(given, rng), given.num_switches)


def with_switches(context: Context) -> Result:
    runs = 1 if context.quick else 20
    switched = [
        Switched(Drawn("independent", n, runs=runs), d, lasts_s, where)
        for lasts_s in (None, UPDATE_S)
        for where in WHERE
        for n in PER_EDGE
        for d in SWITCHES
    ]
    found = dict(zip(switched, context.map(against_bound, switched), strict=True))
    return Result([], [_table(found)], [_plot(found)], _claims(found))


def _at_once(given: Switched, rng: np.random.Generator) -> float:
    drawn, num = given.drawn, given.num_switches
    times_s, predicted_s = instance(drawn, rng)
    load_s = loads_s(times_s, place_by_load(predicted_s, drawn.num_edges), drawn.num_edges)
    struck = np.full(num, load_s.argmax()) if given.where == "last" else rng.integers(drawn.num_edges, size=num)
    load_s += loads_s(np.full(num, given.switch_s), struck, drawn.num_edges)
    return float(load_s.max()) / least_makespan_s(times_s, drawn.num_edges)


def _with_arrivals(given: Switched, rng: np.random.Generator) -> float:
    drawn, num = given.drawn, given.num_switches
    times_s, predicted_s = instance(drawn, rng)
    arrived_at_s = arrivals(drawn, 0.9, rng)
    asked_at_s, edges = rng.random(num) * arrived_at_s[-1], rng.integers(drawn.num_edges, size=num)
    switches = [Switch(float(at_s), int(edge), given.switch_s) for at_s, edge in zip(asked_at_s, edges, strict=True)]
    _, completed_at_s = place_with_feedback(arrived_at_s, times_s, predicted_s, drawn.num_edges, switches)
    return float(completed_at_s.max()) / least_makespan_s(times_s, drawn.num_edges, arrived_at_s)


def _table(found: dict[Switched, Figures]) -> Table:
    rows = tuple(
        (_lasts(g.lasts_s), g.where, int(g.drawn.per_edge), g.num_switches, told["bound"], told["mean"], told["max"], told["above"])
        for g, told in found.items()
    )
    columns = ("an update lasts", "where", "tasks an edge", "updates", "bound", "mean ratio", "greatest", "share above the bound")
    note = f"mu = {MU:g}, {NUM_EDGES} edges, predictions drawn like the times, apart from them. Where: " + "; ".join(
        f"{name}, {says}" for name, says in WHERE.items()
    )
    return Table("switches", "End over the lower bound, with updates", columns, rows, note)


def _plot(found: dict[Switched, Figures]) -> Plot:
    panels = []
    for lasts_s in (None, UPDATE_S):
        lines = [Line(f"{n} tasks an edge", SWITCHES, tuple(_like(found, n, d, lasts_s)["max"] for d in SWITCHES)) for n in PER_EDGE]
        lines.append(Line("Proposition 1", SWITCHES, tuple(competitive_ratio(MU, d) for d in SWITCHES), faint=True))
        panels.append(Lines(f"an update lasts {_lasts(lasts_s)}", "updates", "end over the lower bound", tuple(lines), log_y=True))
    caption = (
        "The greatest ratio of all runs, all updates on the edge that ends last. Updates that grow with the load stay under the thin line "
        f"as long as Theorem 2 does; updates of {UPDATE_S:g} s do not, when there are few tasks."
    )
    return Plot("switches", "How late JTOM ends, by updates", caption, tuple(panels), across=2)


def _like(found: dict[Switched, Figures], per_edge: int, num_switches: int, lasts_s: float | None) -> Figures:
    wanted = (per_edge, num_switches, lasts_s, "last")
    return next(told for g, told in found.items() if (g.drawn.per_edge, g.num_switches, g.lasts_s, g.where) == wanted)


def _claims(found: dict[Switched, Figures]) -> list[Claim]:
    assumed = {g: told for g, told in found.items() if g.lasts_s is None and g.drawn.per_edge >= MANY}
    measured = {g: told for g, told in found.items() if g.lasts_s is not None}
    return [
        Claim(
            "proposition1-assumed",
            "Proposition 1",
            f"with updates of (N/S) t_min and {MANY} tasks an edge or more, JTOM ends within 2 (mu + d)/(mu + 1)",
            _bounds(),
            _said(assumed),
            _judged(assumed).verdict,
            _judged(assumed).rule,
            "All updates on one edge add d (N/S) t_min, which is 2d/(mu + 1) of the lower bound: it holds wherever Theorem 2 does.",
        ),
        Claim(
            "proposition1-18s",
            "Proposition 1",
            f"the same with the {UPDATE_S:g} s that every update of Table III took",
            _bounds(),
            _said(measured),
            _judged(measured).verdict,
            _judged(measured).rule,
            f"{UPDATE_S:g} s are at most (N/S) t_min from {UPDATE_S / MIN_TIME_S:g} tasks an edge on; with fewer, Assumption 3 fails.",
        ),
    ]


def _judged(found: dict[Switched, Figures]) -> Judged:
    return at_every_point(sum(told["above"] == 0.0 for told in found.values()), len(found))


def _bounds() -> str:
    return ", ".join(f"{competitive_ratio(MU, d):.3f} for d = {d}" for d in SWITCHES)


def _said(found: dict[Switched, Figures]) -> str:
    worst = {d: max(told["max"] for g, told in found.items() if g.num_switches == d) for d in SWITCHES}
    held = sum(told["above"] == 0.0 for told in found.values())
    return ", ".join(f"{ratio:.3f} for d = {d}" for d, ratio in worst.items()) + f" at most; within it in {held} of {len(found)} settings"


def _lasts(lasts_s: float | None) -> str:
    return "(N/S) t_min" if lasts_s is None else f"{lasts_s:g} s"
