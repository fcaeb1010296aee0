"""Task mixes: which share of tasks is of which type, and how that drifts over time. Values only; drawing takes a passed generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TaskMix = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class MixPhase:
    """From `start_at_s` on, tasks come in these shares."""

    start_at_s: float
    shares: TaskMix


@dataclass(frozen=True, slots=True)
class DriftingMix:
    """Phases one after another. With `blend_s` a change takes that long, linearly; without, it is a step."""

    phases: tuple[MixPhase, ...]
    blend_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases is empty: give at least one mix")
        starts = [phase.start_at_s for phase in self.phases]
        if starts != sorted(set(starts)):
            raise ValueError(f"phases start at {starts}: each must start after the one before")
        if self.blend_s < 0.0:
            raise ValueError(f"blend_s is {self.blend_s}: it is a duration, 0 or more")
        for phase in self.phases:
            _checked(phase.shares)

    @classmethod
    def constant(cls, shares: TaskMix) -> DriftingMix:
        return cls((MixPhase(0.0, shares),))

    def at(self, now_s: float) -> dict[str, float]:
        """Shares that sum to 1, by task type in alphabetical order. Before the first phase its shares hold already."""
        current = 0
        for n, phase in enumerate(self.phases):
            if phase.start_at_s <= now_s:
                current = n
        shares = _normalised(self.phases[current].shares)
        if current == 0 or self.blend_s == 0.0:
            return shares
        progress = (now_s - self.phases[current].start_at_s) / self.blend_s
        if progress >= 1.0:
            return shares
        before = _normalised(self.phases[current - 1].shares)
        types = sorted(before.keys() | shares.keys())
        return {t: (1.0 - progress) * before.get(t, 0.0) + progress * shares.get(t, 0.0) for t in types}

    def of(self, region: str) -> DriftingMix:
        """The same in every region."""
        return self

    def changes(self) -> tuple[float, ...]:
        """Instants at which the mix begins to change."""
        return tuple(phase.start_at_s for phase in self.phases[1:])

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(sorted(set().union(*(phase.shares for phase in self.phases))))


@dataclass(frozen=True, slots=True)
class RegionalMix:
    """A drifting mix for each user region; the whole is their mean, weighted by `user_shares` (equal where it says nothing)."""

    by_region: Mapping[str, DriftingMix]
    user_shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not self.by_region:
            raise ValueError("by_region is empty: give at least one region's mix")

    def of(self, region: str) -> DriftingMix:
        """Raises KeyError naming the regions there are."""
        if region not in self.by_region:
            raise KeyError(f"region {region!r} has no mix: there are {', '.join(sorted(self.by_region))}")
        return self.by_region[region]

    def at(self, now_s: float) -> dict[str, float]:
        total: dict[str, float] = dict.fromkeys(self.task_types, 0.0)
        weights = _normalised(self.user_shares or dict.fromkeys(self.by_region, 1.0))
        for region, mix in sorted(self.by_region.items()):
            for task_type, share in mix.at(now_s).items():
                total[task_type] += weights.get(region, 0.0) * share
        return total

    def changes(self) -> tuple[float, ...]:
        return tuple(sorted({at_s for mix in self.by_region.values() for at_s in mix.changes()}))

    @property
    def phases(self) -> tuple[MixPhase, ...]:
        """The whole's mix from the start and from every change on."""
        return tuple(MixPhase(at_s, self.at(at_s)) for at_s in (0.0, *self.changes()))

    @property
    def task_types(self) -> tuple[str, ...]:
        return tuple(sorted({t for mix in self.by_region.values() for t in mix.task_types}))


def mix_drawn(rng: np.random.Generator, mix: TaskMix) -> str:
    """One task type, drawn with the probabilities of the mix."""
    shares = _normalised(mix)
    types = list(shares)
    return types[int(rng.choice(len(types), p=np.array(list(shares.values()))))]


def _checked(shares: TaskMix) -> None:
    if not shares or any(not share >= 0.0 for share in shares.values()) or not sum(shares.values()) > 0.0:
        raise ValueError(f"shares are {dict(shares)}: give each task type a share of 0 or more, and at least one above 0")


def _normalised(shares: TaskMix) -> dict[str, float]:
    total = sum(shares.values())
    return {task_type: share / total for task_type, share in sorted(shares.items())}
