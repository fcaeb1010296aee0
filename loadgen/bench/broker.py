"""What the broker adds to a task and takes of a core, beside the same calls made directly and through a bare proxy, in one run.

Blocks of the three ways take turns, with the same arrivals, so that all see the same load and the same machine. What runs where is
`broker_stack`'s business.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from loadgen.bench.broker_load import Calls, Latencies, Way, latencies
from loadgen.bench.broker_stack import running
from loadgen.bench.decision import DecisionTime, decision_time
from loadgen.bench.stub_edges import Pace
from services.core.workload.arrivals import poisson
from services.runtime.clock import Clock, SystemClock

Tell = Callable[[str], None]

CONNECTED_S = 2.0  # of load each way, and every connection is open
PACE = Pace(num_tokens=8, token_s=0.01)
SCALES = (10, 100, 1000)  # edges, for the time of a decision


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    tasks_per_s: float = 300.0
    duration_s: float = 60.0  # of each way, all its blocks together
    warm_up_s: float = 120.0  # of load through the broker before: a Kafka that has just started compiles what it runs
    rounds: int = 6
    num_edges: int = 10
    pace: Pace = PACE
    scales: tuple[int, ...] = SCALES
    num_decisions: int = 5000
    seed: int = 1


@dataclass(slots=True)
class Side:
    """One way, and what came of it. `cpu_s` is what the measured process has computed so far; for direct calls an idle broker."""

    way: Way
    cpu_s: Callable[[], float]
    warm_up_s: float = CONNECTED_S
    blocks: list[Calls] = field(default_factory=list)
    busy_s: float = 0.0
    lasted_s: float = 0.0

    @property
    def calls(self) -> Calls:
        together = Calls()
        for block in self.blocks:
            together += block
        return together


@dataclass(frozen=True, slots=True)
class SideFigures:
    latencies: Latencies
    num_sent: int
    num_failed: int
    busy_s: float  # CPU time of the measured process
    lasted_s: float
    round_p50_s: tuple[float, ...]
    round_p99_s: tuple[float, ...]

    @property
    def cpu_s_per_task(self) -> float:
        return self.busy_s / self.num_sent

    @property
    def busy_share(self) -> float:
        """Of one core."""
        return self.busy_s / self.lasted_s


@dataclass(frozen=True, slots=True)
class BrokerFigures:
    options: BrokerOptions
    direct: SideFigures
    hop: SideFigures
    broker: SideFigures
    decisions: Mapping[int, DecisionTime]  # by number of edges
    num_events: int  # that Kafka got of the broker, warm-up included
    rss_bytes: int  # of the broker at the end
    is_pinned: bool

    @property
    def added(self) -> Added:
        return added(self.broker, self.direct)

    @property
    def hop_added(self) -> Added:
        return added(self.hop, self.direct)


@dataclass(frozen=True, slots=True)
class Added:
    """To the first token, beside another way. By round: what that round's quantile is more than the other's of the same round."""

    round_p50_s: tuple[float, ...]
    round_p99_s: tuple[float, ...]

    @property
    def p50_s(self) -> float:
        """The median of rounds, so that a disturbance of one block, of either way, decides nothing."""
        return statistics.median(self.round_p50_s)

    @property
    def p99_s(self) -> float:
        return statistics.median(self.round_p99_s)


def added(side: SideFigures, beside: SideFigures) -> Added:
    return Added(
        tuple(a - b for a, b in zip(side.round_p50_s, beside.round_p50_s, strict=True)),
        tuple(a - b for a, b in zip(side.round_p99_s, beside.round_p99_s, strict=True)),
    )


async def measure(options: BrokerOptions, kafka: str, redis_url: str, tell: Tell) -> BrokerFigures:
    clock = SystemClock()
    async with running(options.num_edges, options.pace, kafka, redis_url, clock) as stack:
        decisions = {}
        for num_edges in options.scales:
            tell(f"decisions among {num_edges} edges")
            decisions[num_edges] = decision_time(num_edges, num_decisions=options.num_decisions, seed=options.seed)
        direct, hop, broker = (
            Side(stack.direct, stack.broker_cpu_s),
            Side(stack.hop, stack.hop_cpu_s),
            Side(stack.broker, stack.broker_cpu_s, options.warm_up_s),
        )
        await alternate({"direct": direct, "bare proxy": hop, "broker": broker}, options, clock, tell)
        rss_bytes = stack.broker_rss_bytes()
    return BrokerFigures(
        options, of_side(direct), of_side(hop), of_side(broker), decisions, await stack.num_events(), rss_bytes, stack.is_pinned
    )


async def alternate(sides: Mapping[str, Side], options: BrokerOptions, clock: Clock, tell: Tell) -> None:
    """A round has one block of each side; who begins it changes from round to round."""
    rng = np.random.default_rng(options.seed)
    for name, side in sides.items():
        tell(f"warming up: {name}, {side.warm_up_s:g} s")
        await side.way.block(poisson(options.tasks_per_s, side.warm_up_s, rng))
    names = list(sides)
    for n in range(options.rounds):
        instants = poisson(options.tasks_per_s, options.duration_s / options.rounds, rng)
        for name in itertools.islice(itertools.cycle(names), n, n + len(names)):
            tell(f"round {n + 1} of {options.rounds}: {name}, {len(instants)} tasks")
            side, began_at_s = sides[name], clock.now_s()
            before_s = side.cpu_s()
            side.blocks.append(await side.way.block(instants))
            side.busy_s += side.cpu_s() - before_s
            side.lasted_s += clock.now_s() - began_at_s


def of_side(side: Side) -> SideFigures:
    each = [latencies(block) for block in side.blocks]
    calls = side.calls
    return SideFigures(
        latencies(calls),
        calls.num_sent,
        calls.failures.total(),
        side.busy_s,
        side.lasted_s,
        tuple(block.p50_s for block in each),
        tuple(block.p99_s for block in each),
    )
