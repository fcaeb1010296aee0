"""Portfolio: the edges' models are chosen for the fleet, one edge at a time, each as the best reply to all others.

JTOM lets every edge follow its own history; since ONTO sends tasks where they are answered well, an edge's history is made by its own
model, and edges drift into blends that know no task type whole. Here every check asks of one edge: given the demand of the whole fleet
and the models of the other edges, which model at this edge makes the predicted positive cost of all tasks least (`fleet_cost`)? The cost is
the same for every edge, so replies one after the other never raise it and come to rest (a potential game; Monderer, Shapley 1996): local
search for a facility location problem in which the facilities are task types.

An update has to pay for itself: what it saves over `horizon_s` above what the fleet loses while the edge is away, and at least the share
`min_saving` of the predicted cost. It has to do so also where demand is `doubt` standard deviations less favourable than it was counted.

Demand is a moving average, over `memory_s`, of the mixes behind each edge's activation reports, in tasks for each second that reports
cover: they come when enough tasks have ended, not when checks do. In the silence since, an edge can have had one report's tasks at most.
Where its tasks come from, reports tell of all types together; tasks whose region they do not tell are near to every edge.
Where the last reports of the fleet tell of another mix than those before, by more than chance explains, traffic has changed, and only they
count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import OptionError
from services.core.merging.fleet import LEAST_RATE, EdgeService, Member, fleet_cost
from services.core.merging.mix import GRID, explain
from services.core.merging.shift import activation_shift, variation
from services.core.merging.triggers._base import Action, TriggerDecision, TriggerState
from services.core.merging.values import Mix, normalised
from services.core.merging.windows import CountWindow

STALE = 3.0  # an edge whose averages are older than so many intervals is not being checked
LEAST_MOVED = 0.2  # total variation between the mixes before and after a change of traffic


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Of one edge: tasks a second by task type (sorted), and of each by user region (`EdgeService.regions`), since traffic changed,
    before the last reports and in these; then what they stand on."""

    usual: tuple[float, ...]
    last: tuple[float, ...]
    checked_at_s: float
    reported_at_s: float  # until when tasks were counted
    report_tasks: float  # in one of the last reports
    usual_s: float  # covered by the reports behind `usual`
    last_s: float
    changed_at_s: float

    @property
    def rows(self) -> tuple[tuple[float, ...], ...]:
        told = (self.checked_at_s, self.reported_at_s, self.report_tasks, self.usual_s, self.last_s, self.changed_at_s)
        return (self.usual, self.last, told)

    @classmethod
    def of(cls, state: TriggerState, now_s: float) -> _Seen | None:
        """None where nothing is remembered, or on the clock of a process before this one."""
        if len(state.memory) != 3 or len(state.memory[2]) != 6 or state.memory[2][0] > now_s:
            return None
        usual, last, told = state.memory
        return cls(usual, last, *told)

    def all(self, memory_s: float) -> tuple[float, ...]:
        """`last` counted into `usual`: a moving average over `memory_s`; where reports cover less than that, the mean."""
        weight = self.last_s / max(min(memory_s, self.usual_s + self.last_s), self.last_s, LEAST_RATE)
        return tuple(old + weight * (new - old) for old, new in zip(self.usual, self.last, strict=True))

    def now(self, rates: tuple[float, ...], over_s: float, now_s: float) -> NDArray[np.float64]:
        """`rates`, counted over `over_s`, and the silence since then: in it at most one report's tasks can have come."""
        silent_s, tasks_per_s = now_s - self.reported_at_s, sum(rates)
        tasks = tasks_per_s * over_s + min(tasks_per_s * silent_s, self.report_tasks)
        share = tasks / max(tasks_per_s * (over_s + silent_s), LEAST_RATE)
        return share * np.array(rates)


@dataclass(frozen=True, slots=True, eq=False)
class _Demand:
    rates: NDArray[np.float64]  # (num_task_types, num_regions) tasks a second
    over_s: float  # that they were counted over
    changed_at_s: float
    regions: tuple[str, ...]

    @property
    def higher(self) -> NDArray[np.float64]:
        """(num_task_types, num_task_types, num_regions): `rates` with each task type's a standard deviation higher in turn; types whose
        tasks were not seen are taken to come from where all others do."""
        of_type = self.rates.sum(axis=1)
        everywhere = self.rates.sum(axis=0) / max(of_type.sum(), LEAST_RATE)
        shares = np.where(of_type[:, None] > 0.0, self.rates / np.maximum(of_type, LEAST_RATE)[:, None], everywhere)
        higher: NDArray[np.float64] = self.rates + np.eye(len(shares))[:, :, None] * _spread(of_type, self.over_s)[:, None] * shares
        return higher


@dataclass(frozen=True, slots=True)
class _Reply:
    """The best other model of an edge, and positive costs of a task: of the fleet as it is, and what the model saves of that, with the
    standard deviation that demand gives it. `loss_s`: what a task costs more while the edge is away, times how long that is."""

    mix: Mapping[str, float]
    cost_s: float
    saving_s: float
    spread_s: float
    loss_s: float

    @property
    def told(self) -> str:
        saving_s, spread_s, cost_s = (round(value * 1000) for value in (self.saving_s, self.spread_s, self.cost_s))
        return f"{_named(self.mix)} would save the fleet {saving_s} ± {spread_s} ms of {cost_s} ms a task"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`interval_s` between two checks of an edge; demand is averaged over `memory_s`, until a task type comes more or less often than that
    by `surprise` standard deviations. An update has to pay in `horizon_s` and to save the share `min_saving` of the predicted cost, both
    with `doubt` standard deviations less than the saving that is predicted. `quality_scale`: the broker's.
    """

    interval_s: float = 10.0
    memory_s: float = 160.0
    surprise: float = 4.5
    horizon_s: float = 240.0
    min_saving: float = 0.005
    doubt: float = 0.7
    quality_scale: float = 1.0
    grid: int = GRID

    def __post_init__(self) -> None:
        if min(self.interval_s, self.memory_s, self.horizon_s) <= 0:
            raise OptionError("interval_s, memory_s and horizon_s must be above 0")
        if min(self.quality_scale, self.min_saving, self.surprise, self.doubt) < 0:
            raise OptionError("quality_scale, min_saving, surprise and doubt must be 0 or more")

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
        window, state = me.window, self._counted(me, now_s)
        fleet = {**fleet, edge_id: replace(me, state=state)}
        shift = activation_shift(window.frequencies, state.deployed.reference, window.counts, 1).value if window.num_tasks else 0.0
        if me.service is None or not me.service.prospects:
            told = self._told("skip", "how this edge serves is not known yet", shift, window)
            return state, told if me.service is not None else replace(told, carried=window)
        types = sorted(me.service.prospects[0].quality)
        demand = self._demand(fleet, types, now_s)
        state = self._marked(state, demand, now_s)
        is_first = not me.state.memory and len(fleet) > 1  # first checks come together, so what the others count is known at the second
        if is_first or demand.rates.sum() <= 0.0:
            return state, self._told("skip", "the demand of the fleet is not known yet", shift, window)
        best = self._best(edge_id, me.service, fleet, types, demand)
        problem = self._problem(best)
        if problem is None and best is not None:
            first = self._first(edge_id, best, fleet, types, demand, now_s)
            if first is not None:  # its next check will find so
                done = {**fleet, first[0]: replace(fleet[first[0]], asked=first[1].mix)}
                best = self._best(edge_id, me.service, done, types, demand)
                problem = self._problem(best)
                if problem is not None:
                    problem = f"{problem}, once {first[0]} is merged for {_named(first[1].mix)}"
        if problem is not None or best is None:
            return state, self._told("keep", problem or "", shift, window)
        return state, self._told("update", best.told, shift, window, Mix(best.mix))

    def _problem(self, reply: _Reply | None) -> str | None:
        """Why an update is not worth it; None where it is."""
        if reply is None:
            return "no other model would serve the fleet better"
        if self._sure_s(reply) < self.min_saving * reply.cost_s:
            return f"{reply.told}, min_saving is {self.min_saving:.1%}"
        if self._gain_s(reply) <= 0.0:
            return f"{reply.told}, less in {self.horizon_s:g} s than the update costs"
        return None

    def _counted(self, member: Member, now_s: float) -> TriggerState:
        """What was reported since the last check goes into the averages, once it is known which regions the edge has links to."""
        state, window = member.state, member.window
        later = replace(state, due_at_s=now_s + self.interval_s, interval_s=self.interval_s)
        profiles = state.deployed.profiles
        if not profiles or member.service is None:
            return later
        regions = member.service.regions
        nothing = (0.0,) * (len(profiles) * len(regions))
        seen = _Seen.of(state, now_s)
        if seen is None or len(seen.last) != len(nothing) or now_s - seen.checked_at_s > self.memory_s:
            seen = _Seen(nothing, nothing, now_s, now_s, 0.0, 0.0, 0.0, -math.inf)
        seen = replace(seen, checked_at_s=now_s)
        covered_s = sum(report.end_at_s - report.start_at_s for report in window.reports)
        if not window.num_tasks or covered_s <= 0.0:
            return replace(later, memory=seen.rows)
        seen = replace(
            seen,
            usual=seen.all(self.memory_s),
            last=tuple(_rates(window, profiles, regions, covered_s, self.grid).ravel().tolist()),
            reported_at_s=window.reports[-1].end_at_s,
            report_tasks=window.num_tasks / len(window.reports),
            usual_s=seen.usual_s + seen.last_s,
            last_s=covered_s,
        )
        return replace(later, memory=seen.rows)

    def _demand(self, fleet: Mapping[str, Member], types: list[str], now_s: float) -> _Demand:
        """Where the last reports differ from those before by more than chance explains, traffic has changed: what was counted before says
        nothing of what comes."""
        checked = [one for one in (self._checked(member, now_s) for member in fleet.values()) if one is not None]
        changed_at_s = max((one.changed_at_s for one in checked), default=-math.inf)
        services = [member.service for member in fleet.values() if member.service is not None]
        regions = ("", *sorted({region for service in services for region in service.regions} - {""}))
        rates = np.sum([self._rates(member, types, regions, changed_at_s, now_s) for member in fleet.values()], axis=0)
        last, usual = rates[:2].sum(axis=2)
        reported = [one for one in checked if one.usual_s > 0.0 and one.changed_at_s >= changed_at_s]
        if not reported:
            return _Demand(rates[2], max([one.last_s for one in checked] + [self.interval_s]), changed_at_s, regions)
        last_s = float(np.mean([one.last_s for one in reported]))
        usual_s = min(float(np.mean([one.usual_s for one in reported])), self.memory_s)
        chance = np.hypot(_spread(usual, last_s), _spread(usual, usual_s))
        moved = float(variation(*normalised(np.stack([last, usual]))[:, None])[0])
        if moved >= LEAST_MOVED and (np.abs(last - usual) > self.surprise * chance).any():
            return _Demand(rates[0], last_s, now_s, regions)
        return _Demand(rates[2], min(usual_s + last_s, self.memory_s), changed_at_s, regions)

    def _marked(self, state: TriggerState, demand: _Demand, now_s: float) -> TriggerState:
        seen = _Seen.of(state, now_s)
        if seen is None:
            return state
        if seen.changed_at_s < demand.changed_at_s:
            seen = replace(seen, usual=seen.last, usual_s=0.0)
        return replace(state, memory=replace(seen, changed_at_s=demand.changed_at_s).rows)

    def _checked(self, member: Member, now_s: float) -> _Seen | None:
        """None of an edge that is not checked (pinned, draining)."""
        seen = _Seen.of(member.state, now_s)
        return seen if seen is not None and now_s - seen.checked_at_s <= STALE * self.interval_s else None

    def _rates(self, member: Member, types: list[str], regions: tuple[str, ...], changed_at_s: float, now_s: float) -> NDArray[np.float64]:
        """(3, num_task_types, num_regions) of one edge: last, usual and both; of an edge that is not checked what has been counted."""
        seen, window, profiles = self._checked(member, now_s), member.window, member.state.deployed.profiles
        own = member.service.regions if member.service is not None else ("",)
        told = np.zeros((3, len(profiles), len(own)))
        if seen is not None and profiles and len(seen.last) % len(profiles) == 0:
            last = seen.now(seen.last, seen.last_s, now_s)
            usual = all_ = last
            if seen.usual_s > 0.0 and seen.changed_at_s >= changed_at_s:
                over_s = min(self.memory_s, seen.usual_s + seen.last_s)
                usual, all_ = seen.now(seen.usual, over_s, now_s), seen.now(seen.all(self.memory_s), over_s, now_s)
            counted = np.array([last, usual, all_]).reshape(3, len(profiles), -1)
            if counted.shape == told.shape:
                told = counted
            else:  # how it serves is not known any more: where its tasks come from is not either
                told[:, :, 0] = counted.sum(axis=2)
        elif window.reports and profiles:
            told[:] = _rates(window, profiles, own, max(now_s - window.reports[0].start_at_s, self.interval_s), self.grid)
        in_fleet, known = np.zeros((3, len(types), len(regions))), sorted(profiles)
        shared = [t for t in types if t in profiles]
        into = np.ix_(range(3), [types.index(t) for t in shared], [regions.index(region) for region in own])
        in_fleet[into] = told[:, [known.index(t) for t in shared]]
        return in_fleet

    def _best(self, edge_id: str, service: EdgeService, fleet: Mapping[str, Member], types: list[str], demand: _Demand) -> _Reply | None:
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
        edges = list(services.values())
        cost = fleet_cost(demand.rates, quality, edges, self.quality_scale, is_open, demand.regions)
        best = 2 + int(cost[2:].argmin())
        saving_s = float(cost[0] - cost[best])
        spread_s = self._spread_s(demand, quality[[0, best]], edges, saving_s)
        return _Reply(prospects[best - 2].mix, float(cost[0]), saving_s, spread_s, float(cost[1] - cost[0]) * service.downtime_s)

    def _sure_s(self, reply: _Reply) -> float:
        return reply.saving_s - self.doubt * reply.spread_s

    def _gain_s(self, reply: _Reply) -> float:
        """Within `horizon_s`, of a task's cost times time."""
        return self._sure_s(reply) * self.horizon_s - reply.loss_s

    def _first(
        self, edge_id: str, reply: _Reply, fleet: Mapping[str, Member], types: list[str], demand: _Demand, now_s: float
    ) -> tuple[str, _Reply] | None:
        """The edge whose best reply gains most, where that is another. It counts as done, since else a door may be closed before another
        opens: a lone edge that knows what many ask for draws so many of them that the fleet looks better off without it."""
        first, most_s = None, self._gain_s(reply)
        for name, member in sorted(fleet.items()):
            free = name != edge_id and member.asked is None and self._checked(member, now_s) is not None
            other = self._best(name, member.service, fleet, types, demand) if free and member.service is not None else None
            if other is not None and self._gain_s(other) > most_s and self._problem(other) is None:
                first, most_s = (name, other), self._gain_s(other)
        return first

    def _spread_s(self, demand: _Demand, quality: NDArray[np.float64], edges: list[EdgeService], saving_s: float) -> float:
        """Of the saving between two choices, `quality` (2, num_edges, num_types): each task type's demand a standard deviation higher in
        turn, differences added as squares."""
        rates = np.repeat(demand.higher, 2, axis=0)
        both = np.tile(quality, (len(demand.rates), 1, 1))
        cost = fleet_cost(rates, both, edges, self.quality_scale, np.ones(both.shape[:2], dtype=np.bool_), demand.regions)
        return float(np.sqrt(((cost[::2] - cost[1::2] - saving_s) ** 2).sum()))

    def _told(self, action: Action, reason: str, shift: float, window: CountWindow, mix: Mix | None = None) -> TriggerDecision:
        return TriggerDecision(action, reason, shift, self.interval_s, window, window.emptied(), mix)


def _spread(rates: NDArray[np.float64], over_s: float) -> NDArray[np.float64]:
    spread: NDArray[np.float64] = np.sqrt(np.maximum(rates, 1.0 / over_s) / over_s)
    return spread


def _rates(
    window: CountWindow, profiles: Mapping[str, NDArray[np.float64]], regions: tuple[str, ...], over_s: float, grid: int
) -> NDArray[np.float64]:
    """(num_task_types, num_regions) tasks a second, types sorted. What an edge gets of a type is taken to come from where all comes from
    that it gets."""
    shares = explain(window.counts, profiles, grid).shares
    told = window.tasks_by_region
    tasks = np.array([told.get(region, 0) for region in regions], dtype=np.float64)
    tasks[0] = max(window.num_tasks - tasks[1:].sum(), 0.0)
    rates: NDArray[np.float64] = np.outer([shares.get(t, 0.0) for t in sorted(profiles)], tasks / over_s)
    return rates


def _named(mix: Mapping[str, float]) -> str:
    return " and ".join(f"{share:.0%} {task_type}" for task_type, share in sorted(mix.items(), key=lambda item: -item[1]))
