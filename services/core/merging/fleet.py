"""The edges of a fleet as one trigger sees them together, and what a choice of models for all of them would cost their users.

The prediction stands in for what ONTO does with the models: each task goes where its cost is lowest, and queues grow where many go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.windows import CountWindow
from services.core.offload.values import Link

PARCELS = 32  # of each task type's demand
ALPHAS = tuple((int(f"{n:05b}"[::-1], 2) + 0.5) / PARCELS for n in range(PARCELS))  # of each parcel's users: 0, 16, 8, 24, ... of 32
POOLED = 3.0  # an edge queues as if it had so many times its slots, since tasks that would wait long go elsewhere
FULL = 0.95  # above this utilisation queues are taken to grow in proportion to what is too much
OVERLOAD_S = 20.0  # by which they grow for each unit of utilisation
LEAST_RATE = 1e-12  # tasks a second
DEFAULT = "default"  # names an edge's link to regions that it has none of their own for
UNLINKED_S = 20.0  # to an edge without a link, which takes tasks of the region where no other can

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Prospect:
    """A model that an edge could be merged for, and the score that is expected of it by task type."""

    mix: Mapping[str, float]
    quality: Mapping[str, float]


@dataclass(frozen=True, slots=True, eq=False)
class EdgeService:
    """How an edge serves a usual task: `alone_s` by itself, `full_s` in a full batch of `slots`. It is away for `downtime_s` an update.

    `transfer_s`: uplink and downlink time by user region, of those it has a link to; empty: it is near to all.
    """

    alone_s: float
    full_s: float
    slots: int
    downtime_s: float
    prospects: tuple[Prospect, ...]
    transfer_s: Mapping[str, float] = field(default_factory=dict)

    @property
    def regions(self) -> tuple[str, ...]:
        """Those it has links to, after "", which stands for all others."""
        return ("", *sorted(self.transfer_s.keys() - {""}))

    def transfer_from_s(self, region: str) -> float:
        if not region or not self.transfer_s:
            return 0.0
        return self.transfer_s.get(region, self.transfer_s.get(DEFAULT, UNLINKED_S))

    @classmethod
    def of_usual_tasks(
        cls,
        *,
        prefill_base_s: float,
        step_base_s: float,
        step_row_s: float,
        output_tokens: float,
        slots: int,
        downtime_s: float,
        prospects: Sequence[Prospect],
        links: Mapping[str, Link],
    ) -> EdgeService:
        """From the edge's step times and the mean length of answers. Of transfers the latency both ways counts: the bytes of a prompt and
        its answer take about a thousandth of that."""
        alone_s, full_s = (prefill_base_s + output_tokens * (step_base_s + step_row_s * rows) for rows in (1, slots))
        transfer_s = {region: 2.0 * link.latency_s for region, link in sorted(links.items())}
        return cls(alone_s, full_s, slots, downtime_s, tuple(prospects), transfer_s)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """`window` holds what was counted since its last check. `asked`: what an update under way will make of it. Without `service` nothing is
    known of how it serves."""

    state: TriggerState
    window: CountWindow
    service: EdgeService | None = None
    asked: Mapping[str, float] | None = None

    @property
    def quality(self) -> Mapping[str, float]:
        """Of the model it serves, or will when the update under way is done."""
        if self.asked is not None and self.service is not None:
            for prospect in self.service.prospects:
                if prospect.mix == self.asked:
                    return prospect.quality
        return self.state.deployed.quality


def candidate_mixes(task_types: Sequence[str]) -> tuple[Mapping[str, float], ...]:
    """What edges may be merged for: one task type each, then two in equal shares. More a merged model of an edge's size does not hold."""
    return (*({t: 1.0} for t in task_types), *({one: 0.5, other: 0.5} for one, other in combinations(task_types, 2)))


@runtime_checkable
class FleetTrigger(Protocol):
    """What a merge trigger also has when it decides about an edge in view of all others."""

    def check_in_fleet(self, edge_id: str, fleet: Mapping[str, Member], now_s: float) -> tuple[TriggerState, TriggerDecision]:
        """Called like `check`, of one edge of the fleet."""
        ...


def fleet_cost(
    rates: NDArray[np.float64],
    quality: NDArray[np.float64],
    services: Sequence[EdgeService],
    quality_scale: float,
    is_open: NDArray[np.bool_],
    regions: Sequence[str] = ("",),
) -> Column:
    """Predicted positive cost of a task, (num_choices,): mean completion_time_s + alpha · quality_scale · (1 - quality).

    `rates` are tasks a second, (num_types, num_regions) or of each choice (num_choices, num_types, num_regions); `quality` is
    (num_choices, num_edges, num_types), `is_open` (num_choices, num_edges). Users whose region is "", not told, are taken to be at every
    edge. Demand is dealt out in small parcels, alpha from near 0 to near 1 in turn, each to the edge that costs it least with those before
    it in place; waits are Sakasegawa's for M/M/c. All parcels then pay for the load there is in the end. A closed edge gets none while
    another is open.
    """
    num_choices, num_edges, _ = quality.shape
    alone_s, full_s = np.array([s.alone_s for s in services]), np.array([s.full_s for s in services])
    slots = np.array([s.slots for s in services], dtype=np.float64)
    capacity = slots / full_s  # tasks a second
    pooled = slots * POOLED
    power = np.sqrt(2.0 * (pooled + 1.0)) - 1.0
    shut = np.where(is_open, 0.0, 1e9)

    def time_s(load: NDArray[np.float64]) -> NDArray[np.float64]:
        busy: NDArray[np.float64] = np.minimum(load, FULL)
        wait_s = full_s / pooled * busy**power / (1.0 - busy)
        task_s: NDArray[np.float64] = alone_s + (full_s - alone_s) * busy + wait_s + OVERLOAD_S * np.maximum(load - FULL, 0.0)
        return task_s

    kinds = rates.reshape(*rates.shape[:-2], -1) / PARCELS  # of tasks: each type from each region
    asked = np.flatnonzero(kinds.reshape(-1, kinds.shape[-1]).any(axis=0))
    parcel = np.ascontiguousarray(np.broadcast_to(kinds[..., asked], (num_choices, len(asked))))
    types, places = np.divmod(asked, len(regions))
    transfer_s = np.array([[s.transfer_from_s(region) for s in services] for region in regions])[places]  # (num_kinds, num_edges)
    known = np.ascontiguousarray(quality[:, :, types].swapaxes(1, 2))  # (num_choices, num_kinds, num_edges)
    load, paid = np.zeros((num_choices, num_edges)), np.zeros(parcel.shape)
    row, cell = np.arange(num_choices)[:, None] * num_edges, np.arange(parcel.size).reshape(parcel.shape) * num_edges
    for alpha in ALPHAS:
        own = transfer_s - quality_scale * alpha * known
        chosen = ((time_s(load) + shut)[:, None, :] + own).argmin(axis=2)  # (num_choices, num_kinds)
        load += np.bincount((row + chosen).ravel(), parcel.ravel(), load.size).reshape(load.shape) / capacity
        paid += own.take(cell + chosen)
    perfect = quality_scale * sum(ALPHAS)
    spent = (parcel * (paid + perfect)).sum(axis=1) + (load * capacity * time_s(load)).sum(axis=1)
    total: Column = spent / np.maximum(rates.sum(axis=(-2, -1)), LEAST_RATE)
    return total
