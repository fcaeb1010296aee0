"""The merge engine: for each edge, what its router chose since the last decision, and whether to ask for a new model.

One of the two places in core that hold state. It does no I/O and reads no clock; a controller feeds it reports, asks `check`, and
tells it what was deployed or failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import CountsError, StateError
from services.core.merging.fleet import EdgeService, FleetTrigger, Member
from services.core.merging.mix import GRID, explain
from services.core.merging.saved_state import EdgeState, read_state, state_bytes
from services.core.merging.triggers import Deployed, MergeTrigger, TriggerDecision, TriggerState
from services.core.merging.values import ActivationWindow, Frequencies, Mix
from services.core.merging.windows import CountWindow


@dataclass(frozen=True, slots=True, eq=False)
class MergeRequest:
    """Ask the merger for a model of this traffic: by `mix`, or by `frequencies` where `raw` (paper mode)."""

    edge_id: str
    present_version: str
    mix: Mapping[str, float]
    residual: float
    frequencies: Frequencies
    shift: float
    reason: str
    num_tasks: int
    raw: bool = False


class MergeEngine:
    """One trigger, many edges. `cool_down_s`: least time from a deployment to the next check; `backoff_s` doubles with each failure."""

    def __init__(
        self, trigger: MergeTrigger, *, cool_down_s: float = 0.0, backoff_s: float = 5.0, backoff_cap_s: float = 300.0, grid: int = GRID
    ) -> None:
        self._trigger = trigger
        self._cool_down_s = cool_down_s
        self._backoff_s = backoff_s
        self._backoff_cap_s = backoff_cap_s
        self._grid = grid
        self._edges: dict[str, EdgeState] = {}
        self._decisions: dict[str, TriggerDecision] = {}
        self._services: dict[str, EdgeService] = {}

    @property
    def trigger(self) -> MergeTrigger:
        return self._trigger

    @property
    def edges(self) -> tuple[str, ...]:
        return tuple(sorted(self._edges))

    def deployed(
        self,
        edge_id: str,
        version: str,
        reference: Frequencies,
        profiles: Mapping[str, NDArray[np.float64]],
        mix: Mapping[str, float],
        now_s: float,
        quality: Mapping[str, float] | None = None,
    ) -> None:
        """The edge serves `version`. Counts of the version before are dropped, δ goes on; an unknown edge begins with the initial δ.

        `reference` is f', `profiles` the expected counts of one task by task type, `quality` the expected score of each, all as the
        manifest of `version` has them.
        """
        if any(profile.shape != reference.shape for profile in profiles.values()):
            raise CountsError(f"manifest of {version}: profiles and frequencies have different shapes")
        present = self._edges.get(edge_id)
        interval_s = present.trigger.interval_s if present else self._trigger.interval_s
        memory = present.trigger.memory if present else ()
        model = Deployed(version, reference, dict(profiles), dict(mix), dict(quality or {}))
        state = TriggerState(model, interval_s, now_s + max(interval_s, self._cool_down_s), memory=memory)
        self._edges[edge_id] = EdgeState(state, CountWindow(model.shape))

    def describe(self, edge_id: str, service: EdgeService | None) -> None:
        """How an edge serves and what it could be merged for; triggers that look at the fleet want to know. None: nobody is served."""
        if service is None:
            self._services.pop(edge_id, None)
        else:
            self._services[edge_id] = service

    def deployed_version(self, edge_id: str) -> str | None:
        return self._edges[edge_id].trigger.deployed.version if edge_id in self._edges else None

    def deployed_mix(self, edge_id: str) -> Mapping[str, float]:
        return self._edges[edge_id].trigger.deployed.mix

    def observe(self, window: ActivationWindow, now_s: float) -> bool:
        """Count a report; False when it is of an unknown edge or of another version than the deployed one, and is discarded.

        Raises CountsError for counts that are not of the deployed model's shape, negative, or of more tasks by region than in all.
        """
        edge = self._edges.get(window.edge_id)
        if edge is None or window.version != edge.trigger.deployed.version:
            return False
        if (window.counts < 0).any() or window.num_tasks < 0:
            raise CountsError(f"counts of {window.edge_id} are negative")
        if sum(window.tasks_by_region.values()) > window.num_tasks or min(window.tasks_by_region.values(), default=0) < 0:
            raise CountsError(f"tasks by region of {window.edge_id} are no part of its {window.num_tasks} tasks")
        self._edges[window.edge_id] = replace(edge, window=edge.window.added(window))
        return True

    def check(self, edge_id: str, now_s: float) -> MergeRequest | None:
        """Decide, if a check is due and no update is under way. `decision` tells the outcome; a request stays open until
        `deployed` or `failed`."""
        edge = self._edges[edge_id]
        if edge.asked is not None or now_s < edge.trigger.due_at_s:
            return None
        if isinstance(self._trigger, FleetTrigger):
            state, decision = self._trigger.check_in_fleet(edge_id, self._fleet(), now_s)
        else:
            state, decision = self._trigger.check(edge.trigger, edge.window, now_s)
        asked = decision.evidence if decision.action == "update" else None
        self._edges[edge_id] = replace(edge, trigger=state, window=decision.carried, asked=asked)
        self._decisions[edge_id] = decision
        if asked is None:
            return None
        mix = decision.mix or self._mix(asked, state.deployed)
        self._edges[edge_id] = replace(self._edges[edge_id], asked_mix=mix.shares)
        return MergeRequest(
            edge_id=edge_id,
            present_version=state.deployed.version,
            mix=mix.shares,
            residual=mix.residual,
            frequencies=asked.frequencies,
            shift=decision.shift,
            reason=decision.reason,
            num_tasks=asked.num_tasks,
            raw=self._trigger.raw_frequencies,
        )

    def decision(self, edge_id: str) -> TriggerDecision | None:
        """The latest decision about an edge, of this process."""
        return self._decisions.get(edge_id)

    def due_at_s(self, edge_id: str) -> float:
        return self._edges[edge_id].trigger.due_at_s

    def pending(self, edge_id: str) -> bool:
        """An update was asked for and neither deployed nor failed."""
        return self._edges[edge_id].asked is not None

    def interval_s(self, edge_id: str) -> float:
        return self._edges[edge_id].trigger.interval_s

    def num_failures(self, edge_id: str) -> int:
        """Updates that failed since the last deployment."""
        return self._edges[edge_id].failures

    def num_tasks(self, edge_id: str) -> int:
        """Tasks counted since the last decision."""
        return self._edges[edge_id].window.num_tasks

    def satisfied(self, edge_id: str, now_s: float) -> None:
        """The request turned out to be for the version that is deployed: nothing to do, the counts are spent."""
        edge = self._edges[edge_id]
        self._edges[edge_id] = replace(edge, asked=None, failures=0)

    def failed(self, edge_id: str, now_s: float) -> None:
        """The update failed and the old version goes on. Its counts return, so that the next check, after a back-off, can ask again."""
        edge = self._edges[edge_id]
        wait_s = min(self._backoff_cap_s, self._backoff_s * 2.0 ** min(edge.failures, 30))
        window = edge.asked.joined(edge.window) if edge.asked is not None else edge.window
        state = replace(edge.trigger, due_at_s=now_s + wait_s)
        self._edges[edge_id] = EdgeState(state, window, None, edge.failures + 1)

    def postponed(self, edge_id: str, wait_s: float, now_s: float) -> None:
        """No check before `wait_s` from now (pinned, draining, another controller's update)."""
        edge = self._edges[edge_id]
        self._edges[edge_id] = replace(edge, trigger=replace(edge.trigger, due_at_s=now_s + wait_s))

    def forget(self, edge_id: str) -> None:
        for known in (self._edges, self._decisions, self._services):
            known.pop(edge_id, None)

    def dump(self, edge_id: str, now_s: float) -> bytes:
        """Everything known of an edge, as JSON. An open request is saved as its counts: after a restart the check asks again."""
        return state_bytes(self._edges[edge_id], self._trigger.name, now_s)

    def restore(self, edge_id: str, data: bytes, now_s: float) -> None:
        """Go on from `dump`'s bytes, of this process or another; raises StateError when they cannot be read or are of another trigger."""
        state, trigger_name = read_state(edge_id, data, now_s)
        if trigger_name != self._trigger.name:
            raise StateError(f"saved state of {edge_id} is of trigger {trigger_name!r}, not {self._trigger.name!r}")
        self._edges[edge_id] = state

    def _fleet(self) -> Mapping[str, Member]:
        return {
            edge_id: Member(
                edge.trigger,
                edge.window,
                self._services.get(edge_id),
                edge.asked_mix if edge.asked is not None else None,
            )
            for edge_id, edge in sorted(self._edges.items())
        }

    def _mix(self, evidence: CountWindow, deployed: Deployed) -> Mix:
        return explain(evidence.counts, deployed.profiles, self._grid) if deployed.profiles else Mix({})
