"""Table VI: JTOM's threshold g."""

from __future__ import annotations

import numpy as np

from loadgen.experiments import Experiment
from loadgen.experiments._options import Option, result
from loadgen.experiments._paper import printed
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import holds
from loadgen.reproduce.values import Claim, Result

OPTION = Option("table6", "g", "threshold", 0.2)


def run(context: Context) -> Result:
    told = printed("table6")
    columns = np.array([told["total_quality"], told["process_time"], np.ones(len(told["g"]))]).T
    (quality, time_s, _), *_ = np.linalg.lstsq(columns, np.array(told["weighted_cost"]), rcond=None)
    findings = [
        f"Least squares over the table: weighted cost = {quality:+.3f} quality {time_s:+.3f} process time + constant. A cost that "
        "rises with quality and falls with time is a benefit: the row has the opposite sign.",
    ]
    return result(context, OPTION, [_sign(float(quality), float(time_s)), _best(told)], findings)


def _sign(quality: float, time_s: float) -> Claim:
    judged = holds(quality < 0.0 < time_s, "contradicted: in least squares the printed cost rises with quality or falls with time")
    return Claim(
        "table6-sign",
        "Table VI",
        "the weighted cost of the table is a cost",
        "eq. (1)",
        f"{quality:+.3f} a point of quality, {time_s:+.3f} a second",
        judged.verdict,
        judged.rule,
        "Eq. (1) negated: the mean weight is about 0.5, as that of U(0, 1) is.",
    )


def _best(told: dict[str, list[float]]) -> Claim:
    fixed = told["g"][told["weighted_cost"].index(max(told["weighted_cost"]))]
    judged = holds(fixed == 0.3, "contradicted: with the sign put right another g costs least")
    return Claim(
        "table6-text",
        "Sec. VI, text",
        "weighted cost is least at g = 0.3",
        "g = 0.3",
        f"with the sign put right: g = {fixed:g}, which is also best in quality and time",
        judged.verdict,
        judged.rule,
    )


EXPERIMENT = Experiment("Table VI: the threshold g", "What the shift at which JTOM asks for a new model does.", run)
