"""The published server systems on simulated edges: seconds that a task takes there beyond computing it, and what its answer is worth.

Effects are core's (`services.core.runtimes`); kept here is what changes during a run: a server's precision plan, the variant it has active.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from loadgen.simulator.edge import EdgeSite
from loadgen.simulator.load import Load
from loadgen.simulator.model import SimulatedModel, alike
from loadgen.simulator.scenario import Scenario
from services.core.baselines import Runtime
from services.core.runtimes import Counts, Effect, expert_buffered, mixed_precision, multi_model
from services.core.runtimes.mixed_precision import Preference, Sizes

ORDER = 30  # generator of a seed: which experts become 4-bit first, which positions of variants are most alike


class EdgeRuntime(Protocol):
    """Of one edge. Tasks begin in the order of their starts."""

    @property
    def host_bytes(self) -> float:
        """What its server keeps in host memory, beside what its edge holds."""
        ...

    def begin(self, task: int) -> Effect: ...


@dataclass(frozen=True, slots=True, eq=False)
class _Unmerged:
    """The model that these servers run, by index of the load's task types; and of each task, its type and alpha."""

    task_type: Sequence[int]
    alpha: Sequence[float]
    sizes: Sizes
    counts: tuple[Counts, ...]  # (num_experts,) of one task, all layers in one row
    quality: tuple[float, ...]
    four_bit_loss: tuple[float, ...]  # κ, measured: what a type loses with every expert at 4 bits


class _Precisions:
    """QoS-Quant. The plan follows the majority of the last tasks' preferences; a change of plan is paid for by the task that brings it."""

    def __init__(self, unmerged: _Unmerged, site: EdgeSite, scenario: Scenario, order: Sequence[int]) -> None:
        options, sizes = scenario.runtimes, unmerged.sizes
        wanted: tuple[Preference, ...] = ("throughput", "quality") if options.host_memory else ("throughput",)
        memory_bytes = _memory_bytes(sizes, site)
        self._plans = {kind: mixed_precision.plan(memory_bytes, sizes, kind, order) for kind in wanted}
        self._bytes_per_s = options.link_bytes_per_s * site.speed
        self._effects = {
            kind: [
                mixed_precision.effect(counts, held, sizes, self._bytes_per_s, quality, loss)
                for counts, quality, loss in zip(unmerged.counts, unmerged.quality, unmerged.four_bit_loss, strict=True)
            ]
            for kind, held in self._plans.items()
        }
        self._sizes, self._types, self._alphas = sizes, unmerged.task_type, unmerged.alpha
        self._last: deque[float] = deque(maxlen=options.preference_tasks)
        self._present: Preference = "throughput"
        self.host_bytes = 0.0 if all(held.resident.all() for held in self._plans.values()) else sizes.num_experts * sizes.expert_16_bytes

    def begin(self, task: int) -> Effect:
        self._last.append(self._alphas[task])
        wanted = mixed_precision.preference(self._last)
        moved_bytes = 0.0
        if wanted != self._present and wanted in self._plans:
            moved_bytes = mixed_precision.moved_bytes(self._plans[self._present], self._plans[wanted], self._sizes)
            self._present = wanted
        effect = self._effects[self._present][self._types[task]]
        return Effect(effect.extra_s + moved_bytes / self._bytes_per_s, effect.quality)


class _Buffered:
    """MoE-Load. All experts are in host memory, the edge's memory buffers them, last in, first out."""

    def __init__(self, unmerged: _Unmerged, site: EdgeSite, scenario: Scenario) -> None:
        sizes, rate = unmerged.sizes, scenario.runtimes.link_bytes_per_s * site.speed
        room = int(site.memory_share * sizes.num_experts)
        self._effects = [
            expert_buffered.effect(counts, room, sizes.expert_16_bytes, rate, quality, "lifo")
            for counts, quality in zip(unmerged.counts, unmerged.quality, strict=True)
        ]
        self._types = unmerged.task_type
        self.host_bytes = sizes.num_experts * sizes.expert_16_bytes

    def begin(self, task: int) -> Effect:
        return self._effects[self._types[task]]


class _Variants:
    """Multi-MoE. A variant a task type; the last task's is active."""

    def __init__(self, unmerged: _Unmerged, site: EdgeSite, scenario: Scenario, alikeness: Counts) -> None:
        options, sizes, num = scenario.runtimes, unmerged.sizes, len(unmerged.quality)
        held = multi_model.consolidated(alikeness, num, int(site.memory_share * sizes.num_experts))

        def effect(wanted: int, active: int) -> Effect:
            return multi_model.effect(
                unmerged.counts[wanted],
                held,
                wanted,
                active,
                expert_bytes=sizes.expert_16_bytes,
                non_expert_bytes=sizes.non_expert_bytes,
                bytes_per_s=options.link_bytes_per_s * site.speed,
                quality=unmerged.quality[wanted],
                loss=options.foreign_loss,
            )

        self._same, self._swapped = [effect(n, n) for n in range(num)], [effect(n, multi_model.ABSENT) for n in range(num)]
        self._types = unmerged.task_type
        self._active = multi_model.ABSENT
        self.host_bytes = num * (sizes.num_experts * sizes.expert_16_bytes + sizes.non_expert_bytes)

    def begin(self, task: int) -> Effect:
        wanted = self._types[task]
        effects = self._same if wanted == self._active else self._swapped
        self._active = wanted
        return effects[wanted]


def edge_runtimes(scenario: Scenario, load: Load, sites: Sequence[EdgeSite], seed: int, kind: Runtime) -> tuple[EdgeRuntime | None, ...]:
    """By edge. None where its server holds one merged model: without host memory, where the unmerged one does not fit."""
    if kind == "merged":
        return (None,) * len(sites)
    unmerged = _unmerged(scenario.model, load)
    order = np.random.default_rng([seed, ORDER]).permutation(unmerged.sizes.num_experts)
    made: list[EdgeRuntime | None] = []
    for site in sites:
        fits = site.memory_share * unmerged.sizes.expert_16_bytes >= unmerged.sizes.expert_4_bytes
        if kind == "mixed_precision" and (scenario.runtimes.host_memory or fits):
            made.append(_Precisions(unmerged, site, scenario, order.tolist()))
        elif kind == "expert_buffered" and scenario.runtimes.host_memory:
            made.append(_Buffered(unmerged, site, scenario))
        elif kind == "multi_model" and scenario.runtimes.host_memory:
            made.append(_Variants(unmerged, site, scenario, order.astype(np.float64)))
        else:
            made.append(None)
    return tuple(made)


def swap_s(scenario: Scenario) -> float:
    """Mean over edges of the time that Multi-MoE's swap of non-expert layers takes: its dispatch is told."""
    sizes, rate = scenario.model.sizes, scenario.runtimes.link_bytes_per_s
    swaps_s = [sizes.non_expert_bytes / (rate * group.speed) for group in scenario.edges for _ in range(group.count)]
    return sum(swaps_s) / len(swaps_s)


def _unmerged(model: SimulatedModel, load: Load) -> _Unmerged:
    types = model.task_types
    full, four_bit = model.version(alike(types), 1.0), model.four_bit_quality
    return _Unmerged(
        load.task_type.tolist(),
        load.alpha.tolist(),
        model.sizes,
        tuple(full.profiles[t].ravel() for t in types),
        tuple(full.quality[t] for t in types),
        tuple(max(full.quality[t] - four_bit[t], 0.0) for t in types),
    )


def _memory_bytes(sizes: Sizes, site: EdgeSite) -> float:
    return sizes.non_expert_bytes + site.memory_share * sizes.num_experts * sizes.expert_16_bytes
