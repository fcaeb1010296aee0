"""Fig. 4: weighted cost, total quality and process time against the rate of tasks, for JTOM, ONTO, ours and the seven baselines."""

from __future__ import annotations

from loadgen.experiments import Experiment
from loadgen.experiments._sweep_claims import claims
from loadgen.experiments._sweeps import Point, plots, spoken, sweep, tables
from loadgen.reproduce.context import Context
from loadgen.reproduce.runs import PAPER_SERVERS, utilisation
from loadgen.reproduce.values import Result

X_LABEL = "tasks a second"
RATES = (1, 3, 5, 7, 9, 11, 13, 15, 17, 19)
POINTS = tuple(Point(float(rate), float(rate), PAPER_SERVERS) for rate in RATES)


def run(context: Context) -> Result:
    swept = sweep(context, POINTS)
    low, high = utilisation(RATES[0], PAPER_SERVERS), utilisation(RATES[-1], PAPER_SERVERS)
    findings = [
        f"{PAPER_SERVERS} servers of three speeds, busy {low:.0%} at one task a second and {high:.0%} at {RATES[-1]}. The paper states "
        "neither speeds nor the length of a slot; a slot is a second here.",
        *spoken(swept, X_LABEL),
    ]
    return Result(findings, tables(swept, "fig4", X_LABEL), plots(swept, "fig4", X_LABEL), claims(swept, "fig4", "Fig. 4", X_LABEL))


EXPERIMENT = Experiment("Fig. 4: rate of tasks", "Costs, quality and time from 1 to 19 tasks a second on ten servers.", run)
