"""Fig. 3: weighted cost, total quality and process time against the number of servers, for JTOM, ONTO, ours and the seven baselines."""

from __future__ import annotations

from loadgen.experiments import Experiment
from loadgen.experiments._sweep_claims import claims
from loadgen.experiments._sweeps import Point, plots, spoken, sweep, tables
from loadgen.reproduce.context import Context
from loadgen.reproduce.runs import utilisation
from loadgen.reproduce.values import Result

RATE_PER_S = 9.0
SERVERS = (5, 10, 15, 20)


def run(context: Context) -> Result:
    swept = sweep(context, [Point(float(n), RATE_PER_S, n) for n in SERVERS])
    loads = ", ".join(f"{utilisation(RATE_PER_S, n):.0%} with {n}" for n in SERVERS)
    findings = [
        f"{RATE_PER_S:g} tasks a second on servers of three speeds: busy {loads}. An update takes 18 s in which a server computes nothing.",
        *spoken(swept, "servers"),
    ]
    return Result(
        findings, tables(swept, "fig3", "servers"), plots(swept, "fig3", "number of servers"), claims(swept, "fig3", "Fig. 3", "servers")
    )


EXPERIMENT = Experiment("Fig. 3: number of servers", "Costs, quality and time with 5 to 20 servers at one rate.", run)
