"""Portfolio: the edges' models are chosen for the fleet, one edge at a time, each as the best reply to all others.

JTOM lets every edge follow its own history; since ONTO sends tasks where they are answered well, an edge's history is made by its own
model, and edges drift into blends that know no task type whole. Here every check asks of one edge: given the demand of the whole fleet
and the models of the other edges, which model at this edge makes the predicted positive cost of all tasks least (`fleet_cost`)? The cost is
the same for every edge, so replies one after the other never raise it and come to rest (a potential game; Monderer, Shapley 1996): local
search for a facility location problem in which the facilities are task types.

An update has to pay for itself: what it saves over `horizon_s` above what the fleet loses while the edge is away, and at least the share
`min_saving` of the predicted cost. Demand is a moving average, over `memory_s`, of the mixes behind each edge's activation counts; a
change of traffic, once seen and confirmed, makes it begin anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import OptionError
from services.core.merging.fleet import EdgeService, Member, fleet_cost
from services.core.merging.mix import GRID, explain
from services.core.merging.shift import activation_shift
from services.core.merging.triggers._base import Action, TriggerDecision, TriggerState
from services.core.merging.values import Mix
from services.core.merging.windows import CountWindow

_LAST, _MARKS = 2, 3  # rows of an edge's memory: tasks a second recently, usually, since the last check; then instants (`_Demand`)
STALE = 3.0  # an edge whose averages are older than so many intervals is not being checked


@dataclass(frozen=True, slots=True, eq=False)
class _Demand:
    rates: NDArray[np.float64]  # (num_task_types,) tasks a second
    changed_at_s: float
    suspected_at_s: float  # since when it looks changed; endless when it does not


@dataclass(frozen=True, slots=True)
class _Reply:
    """The best other model of an edge, and positive costs of a task: of the fleet as it is, and what the model saves of that.
    `loss_s`: what a task costs more while the edge is away, times how long that is."""

    mix: Mapping[str, float]
    cost_s: float
    saving_s: float
    loss_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`interval_s` between two checks of an edge; demand is averaged over `memory_s`, or over `recent_s` where that differs from it by more
    than `surprise` standard deviations; where it still does `confirm` intervals later, what was counted before is forgotten. An update has
    to pay in `horizon_s` and to save the share `min_saving` of the predicted cost. `quality_scale`: the broker's.
    """

    interval_s: float = 10.0
    recent_s: float = 25.0
    memory_s: float = 160.0
    surprise: float = 4.5
    confirm: float = 0.9
    horizon_s: float = 240.0
    min_saving: float = 0.01
    quality_scale: float = 1.0
    grid: int = GRID

    def __post_init__(self) -> None:
        if min(self.interval_s, self.recent_s, self.memory_s, self.horizon_s) <= 0:
            raise OptionError("interval_s, recent_s, memory_s and horizon_s must be above 0")
        if min(self.quality_scale, self.min_saving, self.surprise, self.confirm) < 0:
            raise OptionError("quality_scale, min_saving, surprise and confirm must be 0 or more")

    @property
    def name(self) -> str:
        return "portfolio"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        """An edge of which nobody says how it serves, or beside whom."""
        return self.check_in_fleet("", {"": Member(state, window)}, now_s)

    def check_in_fleet(self, edge_id: str, fleet: Mapping[str, Member], now_s: float) -> tuple[TriggerState, TriggerDecision]:
        me = fleet[edge_id]
        window, state = me.window, self._counted(me.state, me.window, now_s)
        fleet = {**fleet, edge_id: replace(me, state=state)}
        shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, 1).value if window.num_tasks else 0.0
        if me.service is None or not me.service.prospects:
            return state, self._told("skip", "how this edge serves is not known yet", shift, window)
        types = sorted(me.service.prospects[0].quality)
        demand = self._demand(fleet, types, now_s)
        state, rates = self._marked(state, demand), demand.rates
        is_first = not me.state.memory and len(fleet) > 1  # first checks come together, so what the others count is known at the second
        if is_first or rates.sum() <= 0.0:
            return state, self._told("skip", "the demand of the fleet is not known yet", shift, window)
        best = self._best(edge_id, me.service, fleet, types, rates)
        if best is None:
            return state, self._told("keep", "no other model would serve the fleet better", shift, window)
        told = f"{_named(best.mix)} would save the fleet {best.saving_s * 1000:.0f} ms of {best.cost_s * 1000:.0f} ms a task"
        if best.saving_s < self.min_saving * best.cost_s:
            return state, self._told("keep", f"{told}, min_saving is {self.min_saving:.1%}", shift, window)
        if best.saving_s * self.horizon_s <= best.loss_s:
            return state, self._told("keep", f"{told}, less in {self.horizon_s:g} s than the update costs", shift, window)
        return state, self._told("update", told, shift, window, Mix(best.mix))

    def _counted(self, state: TriggerState, window: CountWindow, now_s: float) -> TriggerState:
        """What was counted since the last check, as tasks a second by task type, goes into the average."""
        later = replace(state, due_at_s=now_s + self.interval_s, interval_s=self.interval_s)
        profiles = state.deployed.profiles
        if not profiles:
            return later
        elapsed_s = _age_s(state, now_s)
        if not 0.0 < elapsed_s <= self.memory_s or len(state.memory[0]) != len(profiles):
            seen = _seen(window, profiles, self.interval_s, self.grid)
            return replace(later, memory=(seen, seen, seen, (now_s, now_s, math.inf)))
        seen = _seen(window, profiles, elapsed_s, self.grid)
        since_s = now_s - state.memory[_MARKS][1] + elapsed_s
        newer, older = (
            _averaged(state.memory[row], seen, elapsed_s / min(over_s, since_s)) for row, over_s in ((0, self.recent_s), (1, self.memory_s))
        )
        return replace(later, memory=(newer, older, seen, (now_s, *state.memory[_MARKS][1:])))

    def _demand(self, fleet: Mapping[str, Member], types: list[str], now_s: float) -> _Demand:
        """Tasks a second by task type. Where the recent ones differ by more than chance explains, and still do an interval later, traffic
        has changed: what was counted before says nothing of what comes."""
        marks = [m.state.memory[_MARKS] for m in fleet.values() if _age_s(m.state, now_s) <= STALE * self.interval_s]
        changed_at_s = max((mark[1] for mark in marks), default=now_s)
        recent, usual, last = (
            np.sum([self._rates(m, types, row, changed_at_s, now_s) for m in fleet.values()], axis=0) for row in range(3)
        )
        over_s = min(2.0 * self.recent_s, max(now_s - changed_at_s, self.interval_s))
        spread = np.sqrt(np.maximum(usual, 1.0 / self.recent_s) / over_s)
        if not (np.abs(recent - usual) > self.surprise * spread).any():
            return _Demand(usual, changed_at_s, math.inf)
        suspected_at_s = min([mark[2] for mark in marks] + [now_s])
        if now_s - suspected_at_s < self.confirm * self.interval_s:
            return _Demand(recent, changed_at_s, suspected_at_s)
        return _Demand(last, now_s, math.inf)

    def _marked(self, state: TriggerState, demand: _Demand) -> TriggerState:
        if len(state.memory) != _MARKS + 1:
            return state
        last, marks = state.memory[_LAST], (state.memory[_MARKS][0], demand.changed_at_s, demand.suspected_at_s)
        if state.memory[_MARKS][1] >= demand.changed_at_s:
            return replace(state, memory=(*state.memory[:_MARKS], marks))
        return replace(state, memory=(last, last, last, marks))

    def _rates(self, member: Member, types: list[str], row: int, changed_at_s: float, now_s: float) -> NDArray[np.float64]:
        """Of one edge: its averages, or for an edge that is not checked (pinned, draining) what has been counted there."""
        state, reports = member.state, member.window.reports
        told: tuple[float, ...] = ()
        if _age_s(state, now_s) <= STALE * self.interval_s:
            told = state.memory[row if state.memory[_MARKS][1] >= changed_at_s else _LAST]
        elif reports:
            told = _seen(member.window, state.deployed.profiles, max(now_s - reports[0].start_at_s, self.interval_s), self.grid)
        known = dict(zip(sorted(state.deployed.profiles), told, strict=False))
        return np.array([known.get(t, 0.0) for t in types])

    def _best(
        self, edge_id: str, service: EdgeService, fleet: Mapping[str, Member], types: list[str], rates: NDArray[np.float64]
    ) -> _Reply | None:
        prospects = [p for p in service.prospects if p.mix != fleet[edge_id].state.deployed.mix]
        if not prospects:
            return None
        services = {name: member.service for name, member in sorted(fleet.items()) if member.service is not None}
        names = list(services)
        mine = names.index(edge_id)
        present = np.array([[fleet[name].quality.get(t, 0.0) for t in types] for name in names])
        quality = np.repeat(present[None], 2 + len(prospects), axis=0)  # as it is, without this edge, with each prospect
        for row, prospect in enumerate(prospects, start=2):
            quality[row, mine] = [prospect.quality.get(t, 0.0) for t in types]
        is_open = np.ones(quality.shape[:2], dtype=np.bool_)
        is_open[1, mine] = len(names) == 1
        cost = fleet_cost(rates, quality, list(services.values()), self.quality_scale, is_open)
        best = int(cost[2:].argmin())
        loss_s = float(cost[1] - cost[0]) * service.downtime_s
        return _Reply(prospects[best].mix, float(cost[0]), float(cost[0] - cost[2 + best]), loss_s)

    def _told(self, action: Action, reason: str, shift: float, window: CountWindow, mix: Mix | None = None) -> TriggerDecision:
        return TriggerDecision(action, reason, shift, self.interval_s, window, window.emptied(), mix)


def _averaged(then: tuple[float, ...], now: tuple[float, ...], ages: float) -> tuple[float, ...]:
    weight = 1.0 - math.exp(-ages)
    return tuple(old + weight * (new - old) for old, new in zip(then, now, strict=True))


def _age_s(state: TriggerState, now_s: float) -> float:
    """Since the averages were last brought up to date; endless where there are none, or on the clock of a process before this one."""
    age_s = now_s - state.memory[_MARKS][0] if len(state.memory) == _MARKS + 1 else math.inf
    return age_s if age_s >= 0.0 else math.inf


def _seen(window: CountWindow, profiles: Mapping[str, NDArray[np.float64]], elapsed_s: float, grid: int) -> tuple[float, ...]:
    """Tasks a second by task type, sorted."""
    shares = explain(window.counts, profiles, grid).shares if window.num_tasks and profiles else {}
    return tuple(window.num_tasks * shares.get(t, 0.0) / elapsed_s for t in sorted(profiles))


def _named(mix: Mapping[str, float]) -> str:
    return " and ".join(f"{share:.0%} {task_type}" for task_type, share in sorted(mix.items(), key=lambda item: -item[1]))
