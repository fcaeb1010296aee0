"""Sums activation reports by edge and version, and pairs what an edge showed before and after its last update. Decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loadgen.report.values import HeatMap
from loadgen.report.words import mix as mix_words
from loadgen.results import ReplayResult, Update
from moedge.v1 import events_pb2
from services.core.merging.values import Counts, Frequencies, normalised
from services.runtime.codec import layers_to_counts


class ActivationTotals:
    """Routed tokens by edge and version, in the order in which versions appeared."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counts]] = {}
        self._seen: set[str] = set()

    def put(self, report: events_pb2.ActivationReport) -> None:
        """Add one report; the same report again changes nothing."""
        if not report.layers or (report.event_id and report.event_id in self._seen):
            return
        self._seen.add(report.event_id)
        counts = layers_to_counts(report.layers)
        versions = self._counts.setdefault(report.edge_id, {})
        versions[report.version] = versions[report.version] + counts if report.version in versions else counts

    def of(self, edge_id: str, version: str) -> Counts | None:
        return self._counts.get(edge_id, {}).get(version)


def heat_maps(result: ReplayResult, totals: ActivationTotals, profiles: Mapping[str, Frequencies]) -> tuple[HeatMap, ...]:
    """One for each edge: its last update that has activations on both sides. `profiles` are the base model's, by task type."""
    shown: dict[str, HeatMap] = {}
    for update in sorted(result.updates, key=lambda update: update.at_s):
        heat = _around(update, result, totals, profiles) if update.ok else None
        if heat is not None:
            shown[update.edge_id] = heat
    return tuple(heat for _, heat in sorted(shown.items()))


def _around(update: Update, result: ReplayResult, totals: ActivationTotals, profiles: Mapping[str, Frequencies]) -> HeatMap | None:
    if update.swap is None:
        return None
    before, after = totals.of(update.edge_id, update.swap.from_version), totals.of(update.edge_id, update.version)
    if before is None or after is None:
        return None
    mixes = _mix_before(result, update), mix_words(update.mix)
    return HeatMap(update.edge_id, mixed(profiles, update.mix), normalised(before), normalised(after), *mixes)


def mixed(profiles: Mapping[str, Frequencies], shares: Mapping[str, float]) -> Frequencies | None:
    """The base model's activation frequency under a mix; None where a profile of it is missing."""
    if not shares or any(task_type not in profiles for task_type in shares):
        return None
    total: Sequence[Frequencies] = [share * profiles[task_type] for task_type, share in shares.items()]
    return np.asarray(np.sum(total, axis=0))


def _mix_before(result: ReplayResult, update: Update) -> str:
    """What the version before was built for, as the samples before the update show it."""
    before = [s for s in result.samples if s.edge_id == update.edge_id and s.at_s < update.at_s and s.version != update.version]
    return mix_words(before[-1].mix) if before else ""
