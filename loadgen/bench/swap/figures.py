"""What was measured of swaps: one value a swap, one a size of the model, and the worst of all sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap: from the call that asks for it until no task runs on the version before."""

    window_s: float
    fetch_s: float
    load_s: float
    downtime_s: float
    longest_gap_s: float  # between two tokens of any answer
    longest_by_phase_s: tuple[float, float, float]  # while blobs are fetched, while they are loaded and checked, while two versions run
    stall_s: float  # the longest gap less the p99 gap without swaps
    lost_token_s: float  # by how much all gaps together were longer than as many mean gaps without swaps
    bytes_fetched: int
    bytes_full: int
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class SizeFigures:
    fraction: float  # of experts kept
    swaps: tuple[Swap, ...]
    completed: int  # tasks
    failures: tuple[str, ...]  # one a task that did not get all its tokens
    quiet_median_s: float  # gap between two tokens of an answer without swaps
    quiet_p99_s: float
    quiet_stall_p99_s: float  # the measure of a stall where nothing is swapped
    quiet_tokens_per_s: float
    model_bytes: int  # of the largest version
    reserve_bytes: int  # for swaps
    base_rss_bytes: int  # of the worker's process beside the weights, without swaps
    quiet_rss_bytes: int
    mean_changed_bytes: int  # of the layers that a swap makes anew

    @property
    def stall_p99_s(self) -> float:
        return float(np.percentile([swap.stall_s for swap in self.swaps], 99))

    @property
    def stall_median_s(self) -> float:
        return float(np.median([swap.stall_s for swap in self.swaps]))

    @property
    def lost_token_s(self) -> float:
        return float(np.mean([swap.lost_token_s for swap in self.swaps]))

    @property
    def bytes_share(self) -> float:
        """Shipped, of what full reloads would have been."""
        return sum(swap.bytes_fetched for swap in self.swaps) / sum(swap.bytes_full for swap in self.swaps)

    @property
    def peak_rss_bytes(self) -> int:
        return max(swap.peak_rss_bytes for swap in self.swaps)

    @property
    def budget_bytes(self) -> int:
        """What the process may take: its own, one version, and the reserve of the setting."""
        return self.base_rss_bytes + self.model_bytes + self.reserve_bytes

    def median_s(self, name: str) -> float:
        return float(np.median([getattr(swap, name) for swap in self.swaps]))


@dataclass(frozen=True, slots=True)
class SwapFigures:
    shape: str
    sizes: tuple[SizeFigures, ...]
    bandwidth_bytes_per_s: float  # of memory, reads and writes together
    machine: Mapping[str, object]

    def least_load_s(self, size: SizeFigures) -> float:
        """What making a version's changed layers takes at least: their bytes, read and written once."""
        return 2 * size.mean_changed_bytes / self.bandwidth_bytes_per_s

    @property
    def failed(self) -> int:
        return sum(len(size.failures) for size in self.sizes)
