"""Theorem 2 and Proposition 1, tried: where the paper's competitive ratios hold, where they do not, and the smallest counterexamples."""

from __future__ import annotations

from loadgen.experiments import Experiment
from loadgen.experiments._bounds_arrivals import with_arrivals
from loadgen.experiments._bounds_at_once import at_once
from loadgen.experiments._bounds_quality import with_quality
from loadgen.experiments._bounds_switches import with_switches
from loadgen.reproduce.context import Context
from loadgen.reproduce.values import Result


def run(context: Context) -> Result:
    parts = [part(context) for part in (at_once, with_arrivals, with_switches, with_quality)]
    return Result(
        [finding for part in parts for finding in part.findings],
        [table for part in parts for table in part.tables],
        [plot for part in parts for plot in part.plots],
        [claim for part in parts for claim in part.claims],
    )


EXPERIMENT = Experiment(
    "Theorem 2 and Proposition 1: where the ratios hold",
    "How late ONTO and JTOM end, and what they cost, against the optimum or a bound below it.",
    run,
)
