"""What the paper says of its sweeps of servers and of rates, judged over ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadgen.experiments._sweeps import STRONGEST, THEIRS, Sweep
from loadgen.reproduce.rules import Judged, at_every_point, at_least, at_most_points
from loadgen.reproduce.values import Claim

CLAIMED = 16.0  # per cent below every baseline


def claims(swept: Sweep, name: str, source: str) -> list[Claim]:
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
        *_savings(swept, name, source),
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


def _savings(swept: Sweep, name: str, source: str) -> list[Claim]:
    source = f"abstract, {source}"
    by_arm = {other: swept.normalised_saving("JTOM", other, "weighted_cost", THEIRS) for other in THEIRS}
    nearest = min(by_arm, key=lambda other: by_arm[other].mean)
    judged, told = (
        at_least(by_arm[nearest], CLAIMED),
        f"{by_arm[nearest].mean:+.1f} ± {by_arm[nearest].ci95:.1f} % below {nearest}, the nearest",
    )
    says = "JTOM costs at least 16 % less than every baseline (eq. (1), brought to [0, 1] as the figures are)"
    return [
        Claim(f"{name}-16-eq1", source, says, "16.0 %", told, judged.verdict, judged.rule),
        _positive(swept, f"{name}-16-positive", source, "JTOM", THEIRS, "baselines as published"),
        _positive(swept, f"{name}-16-strongest", source, "JTOM", STRONGEST, "baselines in their strongest form", headline=True),
        _positive(swept, f"{name}-16-ours", source, "ours", STRONGEST, "baselines in their strongest form", headline=True),
    ]


def _positive(swept: Sweep, name: str, source: str, who: str, others: Sequence[str], which: str, headline: bool = False) -> Claim:
    """At every point against the baseline that is cheapest there, by mean costs."""
    costs = {x: swept.at(swept.ranked(x, "positive_cost", others)[0], x, "positive_cost").mean for x in swept.xs}
    below = {x: 100.0 * (1.0 - swept.at(who, x, "positive_cost").mean / cost) for x, cost in costs.items()}
    hits, worst, best = sum(saved >= CLAIMED for saved in below.values()), min(below, key=below.__getitem__), max(below.values())
    judged = at_every_point(hits, len(below))
    says = f"{who} costs at least 16 % less than every baseline (positive cost, {which})"
    told = f"at {hits} of {len(below)} points; {best:+.0f} % at best, {below[worst]:+.0f} % at {worst:g}"
    why = "Below the cheapest: " + ", ".join(f"{saved:+.0f} % at {x:g}" for x, saved in below.items()) + "."
    return Claim(name, source, says, "16.0 %", told, judged.verdict, judged.rule, why, headline)
