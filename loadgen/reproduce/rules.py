"""Rules that turn figures into verdicts. Each says in words what it does, so that a page can print the rule beside its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadgen.reproduce.values import Verdict
from loadgen.simulator.figures import Interval


@dataclass(frozen=True, slots=True)
class Judged:
    verdict: Verdict
    rule: str


def at_least(measured: Interval, bound: float, unit: str = "%") -> Judged:
    """A claimed gain of `bound` > 0 or more; a gain of 0 is where the opposite begins. `measured` and `bound` in the same unit."""
    rule = f"reproduced: mean at least {bound:g} {unit} and its 95 % interval above 0; contradicted: the interval below 0"
    if measured.mean >= bound and measured.mean - measured.ci95 > 0.0:
        return Judged(Verdict.REPRODUCED, rule)
    return Judged(Verdict.CONTRADICTED if measured.mean + measured.ci95 < 0.0 else Verdict.NOT_REPRODUCED, rule)


def above_zero(measured: Interval) -> Judged:
    """A claimed sign, without a magnitude."""
    rule = "reproduced: 95 % interval above 0; contradicted: below 0"
    if measured.mean - measured.ci95 > 0.0:
        return Judged(Verdict.REPRODUCED, rule)
    return Judged(Verdict.CONTRADICTED if measured.mean + measured.ci95 < 0.0 else Verdict.NOT_REPRODUCED, rule)


def near(measured: Interval, claimed: float, within: float) -> Judged:
    """A claimed value, and how far from it is still near."""
    rule = f"reproduced: mean within {within:g} of {claimed:g}; contradicted: the whole 95 % interval is further away"
    off = abs(measured.mean - claimed)
    if off <= within:
        return Judged(Verdict.REPRODUCED, rule)
    return Judged(Verdict.CONTRADICTED if off - measured.ci95 > within else Verdict.NOT_REPRODUCED, rule)


def at_most_points(hits: int, points: int) -> Judged:
    """A claim about most points of a sweep."""
    if points < 1:
        raise ValueError("points is 0: a claim about a sweep needs at least one point")
    rule = "reproduced: true at more than half of the points; contradicted: at none; else not reproduced"
    if 2 * hits > points:
        return Judged(Verdict.REPRODUCED, rule)
    return Judged(Verdict.CONTRADICTED if hits == 0 else Verdict.NOT_REPRODUCED, rule)


def at_every_point(hits: int, points: int) -> Judged:
    """A claim about all points."""
    if points < 1:
        raise ValueError("points is 0: a claim about a sweep needs at least one point")
    rule = "reproduced: true at every point; contradicted: at fewer than half; else not reproduced"
    if hits == points:
        return Judged(Verdict.REPRODUCED, rule)
    return Judged(Verdict.CONTRADICTED if 2 * hits < points else Verdict.NOT_REPRODUCED, rule)


def holds(true: bool, rule: str) -> Judged:
    """A statement that is plainly true or false of figures that have no noise."""
    return Judged(Verdict.REPRODUCED if true else Verdict.CONTRADICTED, rule)


def best_of(apart: Sequence[Interval]) -> Judged:
    """A claimed best value against each other one: `apart` are paired costs, the claimed one's less the other's."""
    rule = (
        "reproduced: no other value costs less beyond noise, and some cost more; contradicted: another costs less beyond noise; "
        "not reproduced: nothing differs beyond noise"
    )
    if any(value.mean - value.ci95 > 0.0 for value in apart):
        return Judged(Verdict.CONTRADICTED, rule)
    return Judged(Verdict.REPRODUCED if any(value.mean + value.ci95 < 0.0 for value in apart) else Verdict.NOT_REPRODUCED, rule)
