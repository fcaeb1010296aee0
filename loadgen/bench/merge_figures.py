"""What the merging benchmark is asked for and what it finds. Seconds are of the wall clock, medians where there are several rounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loadgen.bench.sizes import Sizes


@dataclass(frozen=True, slots=True)
class MergeOptions:
    scratch: Path
    sizes: Sizes = field(default_factory=Sizes)
    budget_bytes: int = 2_000_000_000
    rounds: int = 3
    trained_model: Path = Path("infra/demo-model")  # whose routing the model is given
    trained_tasks: str = "toy"
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was done once for the base model, and what that took."""

    experts_s: float = 0.0  # checkpoint read, checked, its experts written in the order of merging
    peak_rss_bytes: int = 0
    num_pairs: int = 0  # of experts, aligned
    align_s: float = 0.0


@dataclass(frozen=True, slots=True)
class NextMix:
    """A mix of which a fifth moved to one task type, planned against the version there is and merged beside its blobs."""

    num_groups: int
    changed_groups: int
    pairs_missing: int  # that no prepared plan asked for: aligned first
    align_s: float
    remerge_s: float


@dataclass(frozen=True, slots=True)
class RoutingFigures:
    """Seconds are medians of the rounds. `remerge_s`: plan to synced blobs; `in_memory_s`: plan to merged experts, as the plain one's."""

    experts_kept: int
    experts_read: int
    pairs: int  # aligned for this plan
    remerge_s: float
    slowest_remerge_s: float
    cold_s: float
    peak_rss_bytes: int
    plan_s: float
    in_memory_s: float
    same_alignment_s: float  # as the released code merges
    in_place_s: float  # the same in a tighter loop
    align_again_s: float  # from one layer
    moved_bytes: int  # members read, merged experts written
    limit_s: float  # at the measured bandwidth
    groups_agree: bool  # the plain one's with the plan's
    max_abs_diff: float
    next_mix: NextMix | None

    @property
    def ratio_same_alignment(self) -> float:
        return self.same_alignment_s / self.in_memory_s

    @property
    def ratio_in_place(self) -> float:
        return self.in_place_s / self.in_memory_s

    @property
    def ratio_align_again(self) -> float:
        return self.align_again_s / self.in_memory_s

    @property
    def share_of_limit(self) -> float:
        return self.limit_s / self.in_memory_s


@dataclass(frozen=True, slots=True)
class MergeFigures:
    sizes: Sizes
    seed: int
    budget_bytes: int
    full_bytes: int
    machine: Mapping[str, object]
    bandwidth_bytes_per_s: float
    prepared: Prepared
    routings: Mapping[str, RoutingFigures]
