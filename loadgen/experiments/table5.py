"""Table V: JTOM's initial interval δ."""

from __future__ import annotations

from loadgen.experiments import Experiment
from loadgen.experiments._options import Option, law_claim, off_the_law, result
from loadgen.reproduce.context import Context
from loadgen.reproduce.values import Result

OPTION = Option("table5", "delta", "interval_s", 20.0)


def run(context: Context) -> Result:
    off = off_the_law("table5")
    within = max(abs(value) for value in off)
    findings = [f"The table's {len(off)} weighted costs are process time less 0.05 quality, and a constant, to ±{within:.1f}."]
    why = "The weight is a constant 0.05, not drawn from U(0, 1) for every task, and the time is a sum, not the last completion."
    return result(context, OPTION, [law_claim(OPTION, off, why)], findings)


EXPERIMENT = Experiment("Table V: the interval between checks", "What JTOM's initial interval δ does.", run)
