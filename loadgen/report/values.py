"""What a report is made from besides the runs: the unmerged comparison, heat-map arrays, and how a run was set up. Plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from loadgen.results import ReplayResult
from services.core.merging.values import Frequencies

WITHOUT_UPDATES = "static"  # the run that others are compared with


@dataclass(frozen=True, slots=True)
class UnmergedArm:
    """The unmerged model, quantised (round to nearest) until it fits an edge's memory: what that edge could serve without merging."""

    edge_id: str
    bits: int
    bytes: int
    memory_bytes: int
    quality: Mapping[str, float]  # measured on scored items, by task type
    fits: bool = True  # False: even the fewest bits exceed the memory


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Original experts that an edge's tasks activated before and after its last update, beside the base model's profile of the new mix."""

    edge_id: str
    base: Frequencies | None  # (num_layers, num_experts) each, rows sum to 1
    before: Frequencies
    after: Frequencies
    before_mix: str = ""
    after_mix: str = ""


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Runs by name in the order in which they are shown; the first is compared with the one without updates, where there is one."""

    title: str
    runs: Mapping[str, ReplayResult]
    unmerged: tuple[UnmergedArm, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()
    setup: Mapping[str, str] = field(default_factory=dict)  # shown as is: model, edges, seed ...
    notes: tuple[str, ...] = ()
