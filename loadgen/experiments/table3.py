"""Table III: downtime and number of updates by rate. The runs are those of Fig. 4."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.experiments import Experiment
from loadgen.experiments._paper import printed
from loadgen.experiments._sweeps import Sweep, sweep
from loadgen.experiments.fig4 import POINTS
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import above_zero, holds, near
from loadgen.reproduce.runs import JTOM, PAPER_FORMS, PAPER_SERVERS
from loadgen.reproduce.values import Cell, Claim, Line, Lines, Plot, Result, Table
from loadgen.simulator.figures import Interval, interval

UPDATE_S = 18.0
KEPT_EXPERTS, EXPERT_BYTES, LINK_BYTES_PER_S = 120, 4_718_592 * 4, 125e6  # of switch-base-32 in fp32 at M-SMoE's default, over 1 Gb/s
ARMS = (JTOM, *PAPER_FORMS)


def run(context: Context) -> Result:
    swept, paper = sweep(context, POINTS, ARMS), printed("table3")
    fetch_s = KEPT_EXPERTS * EXPERT_BYTES / LINK_BYTES_PER_S
    own = _each_server(swept, "JTOM")
    findings = [
        f"JTOM makes {own.mean:.1f} ± {own.ci95:.1f} updates a server in ours; the paper's downtimes come to about one, if it had "
        f"{PAPER_SERVERS} servers. A load that does not drift asks for one update from a random first model and then for none.",
        f"The paper's 18 s may be a fetch: the {KEPT_EXPERTS} experts that M-SMoE keeps of switch-base-32 take {fetch_s:.1f} s in fp32 "
        "over 1 Gb/s.",
    ]
    return Result(findings, [_table(swept, paper)], [_plot(swept, paper)], [*_of_the_paper(paper), *_of_ours(swept, paper)])


def _each_server(swept: Sweep, arm: str) -> Interval:
    """Updates a server, mean over rates; the interval is over seeds."""
    by_rate = [swept.values(arm, x, "updates") for x in swept.xs]
    return interval([sum(of_seed) / len(of_seed) / PAPER_SERVERS for of_seed in zip(*by_rate, strict=True)])


def _table(swept: Sweep, paper: dict[str, list[float]]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for arm in ARMS:
        for x in swept.xs:
            theirs, ours = paper[arm.name][paper["rate"].index(x)], swept.at(arm.name, x, "downtime_s")
            updates = swept.at(arm.name, x, "updates")
            rows.append((arm.name, int(x), int(theirs), int(theirs / UPDATE_S), ours.mean, ours.ci95, updates.mean, updates.ci95))
    columns = ("arm", "rate", "paper, s", "paper, updates", "ours, s", "± 95 %", "ours, updates", "± 95 % of updates")
    return Table("downtime", "Downtime and updates, the paper's and ours", columns, tuple(rows))


def _plot(swept: Sweep, paper: dict[str, list[float]]) -> Plot:
    theirs = tuple(_line(arm.name, paper["rate"], [value / UPDATE_S for value in paper[arm.name]]) for arm in ARMS)
    ours = tuple(_line(arm.name, swept.xs, [swept.at(arm.name, x, "updates").mean for x in swept.xs]) for arm in ARMS)
    caption = "Number of updates in a run (an update is 18 s of downtime). Zero is not drawn."
    panels = (Lines("the paper", "tasks a second", "updates", theirs, True), Lines("ours", "tasks a second", "updates", ours, True))
    return Plot("updates", "Updates by rate", caption, panels, across=2)


def _line(label: str, x: Sequence[float], updates: Sequence[float]) -> Line:
    drawn = [(at, value) for at, value in zip(x, updates, strict=True) if value > 0]
    return Line(label, tuple(at for at, _ in drawn), tuple(value for _, value in drawn), faint=label != "JTOM")


def _of_the_paper(paper: dict[str, list[float]]) -> list[Claim]:
    downtimes = [value for arm, row in paper.items() if arm != "rate" for value in row]
    multiples = sum(value % UPDATE_S == 0 for value in downtimes)
    told = f"{multiples} of {len(downtimes)} printed downtimes are multiples of {UPDATE_S:g} s"
    constant = holds(multiples < len(downtimes), "contradicted: every printed downtime is a multiple of one constant")
    return [
        Claim(
            "downtime-by-server",
            "Sec. III, Table III",
            "servers differ in bandwidth and storage, so updates differ in length",
            "not stated",
            told,
            constant.verdict,
            constant.rule,
            "Whatever the server, an update was taken to cost 18 s.",
        ),
        Claim(
            "t-merge",
            "Assumption 3",
            "a switch costs (N/S)·t_min, which grows with the number of tasks N",
            "t_min = 0.2 s",
            f"the rate, and with it N, grows {paper['rate'][-1] / paper['rate'][0]:.0f}-fold; {told}",
            constant.verdict,
            constant.rule,
            "What is simulated in the paper is not what its Proposition 1 assumes.",
        ),
    ]


def _of_ours(swept: Sweep, paper: dict[str, list[float]]) -> list[Claim]:
    own, none = _each_server(swept, "JTOM"), _each_server(swept, "Multi-MoE")
    theirs = sum(paper["JTOM"]) / len(paper["JTOM"]) / UPDATE_S / PAPER_SERVERS
    bounded, zero = near(own, 1.0, 0.75), near(none, 0.0, 0.1)
    first = swept.xs[0]
    more = interval(
        [a - b for a, b in zip(swept.values("Qual-Greedy", first, "updates"), swept.values("JTOM", first, "updates"), strict=True)]
    )
    thrash = above_zero(more)
    return [
        Claim(
            "updates-bounded",
            "Table III",
            "on a load that does not drift JTOM makes about one update a server",
            f"{theirs:.2f} a server, if there are {PAPER_SERVERS}",
            f"{own.mean:.2f} ± {own.ci95:.2f} a server",
            bounded.verdict,
            bounded.rule,
            headline=True,
        ),
        Claim(
            "multi-moe-none",
            "Table III",
            "Multi-MoE makes almost no updates",
            "0 or 1",
            f"{none.mean:.2f} a server",
            zero.verdict,
            zero.rule,
        ),
        Claim(
            "greedy-thrash",
            "Table III",
            "at one task a second Qual-Greedy updates far more than JTOM",
            f"{paper['Qual-Greedy'][0] / UPDATE_S:.0f} against {paper['JTOM'][0] / UPDATE_S:.0f} updates",
            f"{more.mean:+.1f} ± {more.ci95:.1f} updates",
            thrash.verdict,
            thrash.rule,
            "Where predicted quality is right, every type goes to an edge that is merged for it: its traffic is what its model was built "
            "for, so nothing shifts.",
        ),
    ]


EXPERIMENT = Experiment("Table III: downtime", "How often edges take a new model, and how long nothing runs.", run)
