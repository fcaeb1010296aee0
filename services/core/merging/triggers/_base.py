"""What triggers are given and give back: the deployed model of an edge, its trigger state, and a decision with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from numpy import float64
from numpy.typing import NDArray

from services.core.merging.values import Frequencies, Mix
from services.core.merging.windows import CountWindow

Action = Literal["update", "keep", "skip"]


@dataclass(frozen=True, slots=True, eq=False)
class Deployed:
    """The model version an edge serves, and what its manifest says about it."""

    version: str
    reference: Frequencies  # f': what this version shows for the traffic it was built for
    profiles: Mapping[str, NDArray[float64]]  # expected counts of one task by task type, measured on this version
    mix: Mapping[str, float]  # shares it was built for
    quality: Mapping[str, float] = field(default_factory=dict)  # expected score by task type; empty: not known

    @property
    def shape(self) -> tuple[int, int]:
        return (self.reference.shape[0], self.reference.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class TriggerState:
    """All that a trigger remembers of one edge."""

    deployed: Deployed
    interval_s: float  # δ of this edge
    due_at_s: float  # next check
    suspected: bool = False  # a shift was seen in changing traffic and waits to be confirmed
    memory: tuple[tuple[float, ...], ...] = ()  # rows of the trigger's own making; they outlive versions


@dataclass(frozen=True, slots=True, eq=False)
class TriggerDecision:
    """The outcome of one check. `skip` is no decision: too little was seen, or it is not clear yet what of."""

    action: Action
    reason: str
    shift: float
    interval_s: float  # until the next check
    evidence: CountWindow  # an update is built for the traffic seen here
    carried: CountWindow  # what the next check's window begins with
    mix: Mix | None = None  # of `evidence`, where the trigger has worked it out


class MergeTrigger(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def interval_s(self) -> float:
        """δ of an edge that was never checked."""
        ...

    @property
    def raw_frequencies(self) -> bool:
        """Whether requests carry the frequencies observed themselves (paper mode) instead of a mix."""
        ...

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        """Called when `state.due_at_s` has come, with what was counted since the last decision."""
        ...
