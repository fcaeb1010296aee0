"""What the paper says of its sweeps of servers and of rates, judged over ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.experiments._sweeps import STRONGEST, THEIRS, Sweep
from loadgen.reproduce.rules import Judged, at_every_point, at_least, at_most_points
from loadgen.reproduce.values import Claim
from loadgen.simulator.figures import Interval

CLAIMED = 16.0  # per cent below every baseline


def claims(swept: Sweep, name: str, source: str, x_label: str) -> list[Claim]:
    """What the paper says of the sweep as a whole."""
    compared = (*THEIRS, "ONTO", "JTOM")
    return [
        _points(
            f"{name}-lowest-cost", source, "JTOM has the lowest weighted cost, eq. (1), at most points", "at all points",
            [swept.ranked(x, "weighted_cost", compared)[0] for x in swept.xs], ("JTOM",), at_most_points,
        ),
        _points(
            f"{name}-fastest", source, "JTOM and ONTO have the lowest process time", "at all points",
            [arm for x in swept.xs for arm in swept.ranked(x, "process_time_s", compared)[:2]], ("JTOM", "ONTO"), at_every_point,
        ),
        _points(
            f"{name}-greedy-quality", source, "Qual-Greedy has the highest quality", "at all points",
            [swept.ranked(x, "total_quality", compared)[-1] for x in swept.xs], ("Qual-Greedy",), at_every_point,
        ),
        _points(
            f"{name}-greedy-slowest", source, "Qual-Greedy has the worst process time", "at all points",
            [swept.ranked(x, "process_time_s", compared)[-1] for x in swept.xs], ("Qual-Greedy",), at_most_points,
        ),
        _points(
            f"{name}-jtom-second", source, "JTOM's quality is second only to Qual-Greedy's", "at all points",
            [swept.ranked(x, "total_quality", compared)[-2] for x in swept.xs], ("JTOM",), at_most_points,
        ),
        *_savings(swept, name, source, x_label),
    ]  # fmt: skip


def _points(
    name: str, source: str, says: str, paper: str, found: list[str], wanted: tuple[str, ...], rule: Callable[[int, int], Judged]
) -> Claim:
    others = [arm for arm in found if arm not in wanted]
    hits = len(found) - len(others)
    judged = rule(hits, len(found))
    usual = max(sorted(set(others)), key=others.count, default="")
    ours = f"{hits} of {len(found)}" + (f"; else mostly {usual}" if usual else "")
    return Claim(name, source, says, paper, ours, judged.verdict, judged.rule)


def _savings(swept: Sweep, name: str, source: str, x_label: str) -> list[Claim]:
    source = f"abstract, {source}"
    by_arm = {other: swept.normalised_saving("JTOM", other, "weighted_cost", THEIRS) for other in THEIRS}
    nearest = min(by_arm, key=lambda other: by_arm[other].mean)
    judged = at_least(by_arm[nearest], CLAIMED)
    told = f"{below(by_arm[nearest], nearest)} (the nearest)"
    says = "JTOM costs at least 16 % less than every baseline (eq. (1), brought to [0, 1] as the figures are)"
    return [
        Claim(f"{name}-16-eq1", source, says, "16.0 %", told, judged.verdict, judged.rule),
        _positive(swept, f"{name}-16-positive", source, x_label, "JTOM", THEIRS),
        _positive(swept, f"{name}-16-strongest", source, x_label, "JTOM", STRONGEST),
        _positive(swept, f"{name}-16-ours", source, x_label, "ours", STRONGEST),
    ]


def _positive(swept: Sweep, name: str, source: str, x_label: str, who: str, others: Sequence[str]) -> Claim:
    """At every point against the baseline that is cheapest there, by mean costs."""
    strongest = others is STRONGEST
    which = "baselines in their strongest form" if strongest else "baselines as published"
    costs = {x: swept.at(swept.ranked(x, "positive_cost", others)[0], x, "positive_cost").mean for x in swept.xs}
    saved = {x: 100.0 * (1.0 - swept.at(who, x, "positive_cost").mean / cost) for x, cost in costs.items()}
    hits, worst, best = sum(value >= CLAIMED for value in saved.values()), min(saved, key=saved.__getitem__), max(saved.values())
    judged = at_every_point(hits, len(saved))
    says = f"{who} costs at least 16 % less than every baseline (positive cost, {which})"
    told = f"at {hits} of {len(saved)} points; {round(best):+d} % at best, {round(saved[worst]):+d} % at {worst:g} {x_label}"
    why = f"Below the cheapest, by {x_label}: " + ", ".join(f"{round(value):+d} % at {x:g}" for x, value in saved.items()) + "."
    return Claim(name, source, says, "16.0 %", told, judged.verdict, judged.rule, why, headline=strongest)


def below(saved: Interval, other: str) -> str:
    """Per cent saved in words: what costs more lies above the other."""
    return f"{abs(saved.mean):.1f} ± {saved.ci95:.1f} % {'below' if saved.mean >= 0 else 'above'} {other}"
