"""Updates in virtual time: activation reports to the merge engine, its checks, and what a build, a fetch and a load take.

The engine decides; what is decided here is only what the controller decides live, whether a built version is worth a rollout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadgen.simulator.edge import Edge
from loadgen.simulator.model import SimulatedVersion
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.timeline import Priority, Timeline
from services.core.merging.engine import MergeEngine, MergeRequest
from services.core.merging.fleet import EdgeService, FleetTrigger, Prospect, candidate_mixes
from services.core.merging.gain import expected_gain
from services.core.merging.triggers import MergeTrigger, trigger
from services.core.merging.triggers import options as trigger_options
from services.core.merging.values import ActivationWindow, normalised


@dataclass(frozen=True, slots=True)
class Update:
    """One edge took a new version."""

    at_s: float
    edge_id: str
    version: str
    shift: float
    downtime_s: float
    requested_at_s: float
    mix: Mapping[str, float]  # what the version was built for


@dataclass(slots=True, eq=False)
class _Rollout:
    edge: Edge
    request: MergeRequest
    version: SimulatedVersion
    requested_at_s: float


class Updates:
    """`changed` is called when an edge's version or state is another."""

    def __init__(
        self,
        scenario: Scenario,
        trigger_name: str,
        edges: Sequence[Edge],
        timeline: Timeline,
        rng: np.random.Generator,
        changed: Callable[[Edge, float], None],
    ) -> None:
        options = scenario.updates
        self.engine = MergeEngine(_made(scenario, trigger_name), cool_down_s=options.cool_down_s)
        self.log: list[Update] = []
        self.num_reports = 0
        self._options = options
        self._model = scenario.model
        self._regions = scenario.regions
        self._timeline = timeline
        self._rng = rng
        self._changed = changed
        self._built: set[str] = set()
        self._loading: dict[str, _Rollout] = {}
        for edge in edges:
            self._built.add(edge.version.version)
            if isinstance(self.engine.trigger, FleetTrigger):
                self.engine.describe(edge.site.edge_id, _service(scenario, edge))
            self._deployed(edge, None, 0.0)
            timeline.at(options.report_interval_s, Priority.REPORT, self._report, edge)

    def unavailable_s(self, edge: Edge, now_s: float) -> float | None:
        """While the edge is down, or finishes what runs before it: how long it will yet be. None when it serves."""
        if edge.admitting:
            return None
        return edge.available_at_s - now_s if edge.available_at_s > now_s else self._options.load_s

    def drained(self, edge: Edge, now_s: float) -> None:
        """The edge holds its queue for an update, and nothing runs any more."""
        rollout = self._loading.pop(edge.site.edge_id, None)
        if rollout is None:
            return
        edge.available_at_s = now_s + self._options.load_s
        self._timeline.at(edge.available_at_s, Priority.UPDATE, self._loaded, rollout)
        self._changed(edge, now_s)

    def _report(self, edge: Edge, now_s: float) -> None:
        """One multinomial draw a layer for all tasks since the last report."""
        options = self._options
        self._timeline.at(now_s + options.report_interval_s, Priority.REPORT, self._report, edge)
        if edge.num_counted < options.report_tasks:
            return
        profiles, types = edge.version.profiles, self._model.task_types
        expected = np.zeros_like(profiles[types[0]])
        for task_type, num_tasks in sorted(edge.counted.items()):
            expected += num_tasks * profiles[types[task_type]]
        num_tokens = np.rint(expected.sum(axis=1)).astype(np.int64)
        counts = self._rng.multinomial(num_tokens, normalised(expected)).astype(np.int64)
        regions = {self._regions[region]: num_tasks for region, num_tasks in sorted(edge.counted_from.items())}
        window = ActivationWindow(edge.site.edge_id, edge.version.version, counts, edge.num_counted, edge.counted_since_s, now_s, regions)
        edge.count_anew(now_s)
        self.num_reports += 1
        self.engine.observe(window, now_s)

    def _check(self, edge: Edge, now_s: float) -> None:
        edge_id = edge.site.edge_id
        if self.engine.pending(edge_id):
            return
        request = self.engine.check(edge_id, now_s)
        if request is None:
            self._check_when_due(edge, now_s)
            return
        version = self._model.version(request.mix, edge.site.memory_share)
        build_s = version.build_s if self._options.build_s is None else self._options.build_s
        if version.version in self._built:
            build_s = 0.0
        self._built.add(version.version)
        self._timeline.at(now_s + build_s, Priority.UPDATE, self._build_done, _Rollout(edge, request, version, now_s))

    def _build_done(self, rollout: _Rollout, now_s: float) -> None:
        edge, version, request = rollout.edge, rollout.version, rollout.request
        gain = expected_gain(request.mix, edge.version.stated_quality, version.stated_quality)
        too_little = gain is not None and gain < self._options.min_gain
        if version.version == edge.version.version or (not request.raw and too_little):
            self.engine.satisfied(edge.site.edge_id, now_s)
            self._check_when_due(edge, now_s)
            return
        rate = self._options.fetch_bytes_per_s
        fetch_s = version.model_bytes / rate if rate > 0.0 else 0.0
        if self._options.beside:
            self._timeline.at(now_s + fetch_s + self._options.load_s, Priority.UPDATE, self._swapped, rollout)
        else:
            self._timeline.at(now_s + fetch_s, Priority.UPDATE, self._fetched, rollout)

    def _fetched(self, rollout: _Rollout, now_s: float) -> None:
        """Memory holds one version: what runs finishes, the others wait."""
        edge = rollout.edge
        edge.admitting = False
        self._loading[edge.site.edge_id] = rollout
        self._changed(edge, now_s)
        if edge.num_running == 0:
            self.drained(edge, now_s)

    def _loaded(self, rollout: _Rollout, now_s: float) -> None:
        rollout.edge.admitting = True
        self._serve(rollout, now_s, self._options.load_s)

    def _swapped(self, rollout: _Rollout, now_s: float) -> None:
        self._serve(rollout, now_s, 0.0)

    def _serve(self, rollout: _Rollout, now_s: float, downtime_s: float) -> None:
        edge, request = rollout.edge, rollout.request
        edge.version = rollout.version
        edge.count_anew(now_s)
        version = edge.version
        self.log.append(Update(now_s, edge.site.edge_id, version.version, request.shift, downtime_s, rollout.requested_at_s, version.mix))
        self._deployed(edge, request, now_s)
        self._changed(edge, now_s)

    def _deployed(self, edge: Edge, request: MergeRequest | None, now_s: float) -> None:
        version = edge.version
        reference = request.frequencies if request is not None and request.raw else version.reference
        self.engine.deployed(edge.site.edge_id, version.version, reference, version.profiles, version.mix, now_s, version.stated_quality)
        self._check_when_due(edge, now_s)

    def _check_when_due(self, edge: Edge, now_s: float) -> None:
        self._timeline.at(max(self.engine.due_at_s(edge.site.edge_id), now_s), Priority.CHECK, self._check, edge)


def _service(scenario: Scenario, edge: Edge) -> EdgeService:
    """How a usual task is served: lengths and qualities as calibration tells."""
    model, site, options = scenario.model, edge.site, scenario.updates
    lengths = model.mean_output_tokens()
    mixes = candidate_mixes(model.task_types)
    return EdgeService.of_usual_tasks(
        prefill_base_s=site.step_times.prefill_base_s,
        step_base_s=site.step_times.step_base_s,
        step_row_s=site.step_times.step_row_s,
        output_tokens=sum(lengths.values()) / len(lengths),
        slots=site.max_batch,
        downtime_s=0.0 if options.beside else options.load_s,
        prospects=[Prospect(mix, model.version(mix, site.memory_share).stated_quality) for mix in mixes],
        links=site.links,
    )


def _made(scenario: Scenario, trigger_name: str) -> MergeTrigger:
    """A trigger that wants to know what quality is worth is told, and one that wants to know when traffic changes too: an upper anchor."""
    given = dict(scenario.triggers.get(trigger_name, {}))
    known = {"changes_at_s": scenario.changes_at_s, "quality_scale": scenario.quality_scale}
    for option in sorted(known.keys() & set(trigger_options(trigger_name))):
        given.setdefault(option, known[option])
    return trigger(trigger_name, **given)
