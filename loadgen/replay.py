"""The open-loop live replay: every task of a plan is sent at its intended instant, whatever happened to those before it.

The instant of the next send comes from the start of the plan, so lateness never adds up. It decides nothing about where tasks run.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence

import grpc

from loadgen.exchange import Exchange
from loadgen.lateness import LATE_S
from loadgen.options import ReplayOptions
from loadgen.pacing import paced
from loadgen.recorder import Recorder
from loadgen.results import EdgeDescription, EdgeSample, Finished, Outcome, ReplayResult
from loadgen.tally import Tally
from loadgen.updates import UpdateFeed, updates_seen
from loadgen.view import QuietView, ReplayView
from moedge.v1 import broker_pb2, broker_pb2_grpc, worker_pb2
from services.core.workload.load import PlannedTask
from services.runtime.clock import Clock, SystemClock
from services.runtime.codec import link_from_proto, seconds, step_times_from_proto
from services.runtime.net import PLAINTEXT, Network
from services.runtime.status import failure_of
from services.tasks.scoring import SCORERS
from services.tasks.values import TaskItem, TaskSet

LIST_DEADLINE_S = 5.0
READY_POLL_S = 0.2


class ReplayError(Exception):
    """A replay that cannot start: nothing has been sent."""


async def replay(
    target: str,
    plan: Sequence[PlannedTask],
    items: TaskSet,
    options: ReplayOptions,
    view: ReplayView | None = None,
    *,
    feed: UpdateFeed | None = None,
    clock: Clock | None = None,
    network: Network = PLAINTEXT,
) -> ReplayResult:
    """Send `plan` to the broker at `target` and wait for every task's end.

    `feed` brings merge events (embedded stacks); without one, updates are read off the edges' versions once a second.
    """
    if not plan:
        raise ReplayError("plan is empty: raise the rate or the duration")
    async with network.channel(target, "broker") as connection:
        run = _Run(connection, target, plan, _by_id(items, plan), items, options, view or QuietView(), feed, clock or SystemClock())
        return await run.execute()


def _by_id(items: TaskSet, plan: Sequence[PlannedTask]) -> Mapping[tuple[str, str], TaskItem]:
    by_id = {(item.task_type, item.item_id): item for item in items.items}
    for planned in plan:
        if (planned.task_type, planned.item_id) not in by_id:
            raise ReplayError(f"item_id {planned.item_id!r} of task type {planned.task_type!r} is not in task set {items.name!r}")
    return by_id


class _Run:
    """One pass over one plan."""

    def __init__(
        self,
        connection: grpc.aio.Channel,
        target: str,
        plan: Sequence[PlannedTask],
        items: Mapping[tuple[str, str], TaskItem],
        task_set: TaskSet,
        options: ReplayOptions,
        view: ReplayView,
        feed: UpdateFeed | None,
        clock: Clock,
    ) -> None:
        self._target, self._plan, self._items, self._options = target, plan, items, options
        self._scorers = {task_type: SCORERS[name] for task_type, name in task_set.scorers.items()}
        self._view, self._feed, self._clock = view, feed, clock
        self._broker = broker_pb2_grpc.BrokerServiceStub(connection)
        self._start_at_s = clock.now_s()
        self._exchange = Exchange(connection, uuid.uuid4().hex[:12], options, clock, self._now_s)
        self._tally = Tally(quality_scale=1.0)
        self._finished: list[Finished] = []
        self._samples: list[EdgeSample] = []
        self._latest: tuple[EdgeSample, ...] = ()
        self._scores_sent = 0
        self._scores_refused = 0
        self._said = 0
        self._recorder = Recorder(options.records_path)

    def _now_s(self) -> float:
        return self._clock.now_s() - self._start_at_s

    async def execute(self) -> ReplayResult:
        listing = await self._ready()
        self._tally = Tally(quality_scale=listing.quality_scale or 1.0)
        self._start_at_s = self._clock.now_s() + self._options.lead_s
        if self._feed is not None:
            self._feed.begin(self._start_at_s)
        self._take(listing)
        with self._recorder, self._view:
            async with asyncio.TaskGroup() as background:
                watchers = [background.create_task(self._sample()), background.create_task(self._show())]
                try:
                    await self._send_all()
                finally:
                    for watcher in watchers:
                        watcher.cancel()
        duration_s = self._now_s()
        await self._sample_once()
        return self._result(listing, duration_s)

    async def _send_all(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            await paced(self._plan, self._start_at_s, self._clock, lambda planned: tasks.create_task(self._one(planned)))

    async def _one(self, planned: PlannedTask) -> None:
        sent_at_s = self._now_s()
        self._tally.add_sent(late=sent_at_s - planned.at_s > LATE_S)
        item = self._items[planned.task_type, planned.item_id]
        record = await self._exchange.run(planned, item, self._scorers[planned.task_type], sent_at_s)
        self._finished.append(record)
        self._tally.add(record)
        self._recorder.write(record)
        if self._options.send_scores and record.outcome is Outcome.COMPLETED:
            taken = await self._exchange.score(record)
            self._scores_sent += taken
            self._scores_refused += not taken

    async def _ready(self) -> broker_pb2.ListEdgesResponse:
        """The edges, once each that is listed serves; a target that does not answer is an error at once, with its reason."""
        give_up_at_s = self._clock.now_s() + self._options.ready_within_s
        while True:
            try:
                listing = await self._broker.ListEdges(broker_pb2.ListEdgesRequest(), timeout=LIST_DEADLINE_S)
            except grpc.aio.AioRpcError as error:
                raise ReplayError(f"target {self._target} does not answer: {failure_of(error).message}") from error
            if listing.edges and all(edge.state == worker_pb2.EDGE_STATE_READY for edge in listing.edges):
                return listing
            if self._clock.now_s() > give_up_at_s:
                waiting = ", ".join(edge.edge_id for edge in listing.edges if edge.state != worker_pb2.EDGE_STATE_READY) or "none is listed"
                raise ReplayError(f"edges at {self._target} are not ready within {self._options.ready_within_s:.0f} s: {waiting}")
            await self._clock.sleep(READY_POLL_S)

    async def _sample(self) -> None:
        while True:
            await self._clock.sleep(self._options.sample_every_s)
            await self._sample_once()

    async def _sample_once(self) -> None:
        try:
            self._take(await self._broker.ListEdges(broker_pb2.ListEdgesRequest(), timeout=LIST_DEADLINE_S))
        except grpc.aio.AioRpcError:
            return  # a gap in the samples; what users feel of it is in the records

    def _take(self, listing: broker_pb2.ListEdgesResponse) -> None:
        at_s = self._now_s()
        self._latest = tuple(_sample_of(edge, at_s) for edge in sorted(listing.edges, key=lambda edge: edge.edge_id))
        self._samples.extend(self._latest)

    async def _show(self) -> None:
        options = self._options
        while True:
            now_s = self._now_s()
            mix = dict(options.mix.at(max(now_s, 0.0))) if options.mix is not None else {}
            planned_s = self._plan[-1].at_s
            progress = self._tally.progress(options.name, now_s, planned_s, len(self._plan), mix, self._latest)
            await asyncio.to_thread(self._view.show, progress)
            for update in self._feed.updates[self._said :] if self._feed is not None else ():
                self._said += 1
                what = f"serves {update.version[:8]}" if update.ok else "kept its version"
                await asyncio.to_thread(self._view.say, f"{update.at_s:6.1f} s  {update.edge_id} {what}: {update.reason}")
            await self._clock.sleep(self._view.every_s)

    def _result(self, listing: broker_pb2.ListEdgesResponse, duration_s: float) -> ReplayResult:
        mix = self._options.mix
        return ReplayResult(
            name=self._options.name,
            target=self._target,
            policy=listing.policy,
            base_model=listing.base_model,
            quality_scale=self._tally.quality_scale,
            num_planned=len(self._plan),
            planned_s=self._plan[-1].at_s,
            duration_s=duration_s,
            finished=tuple(sorted(self._finished, key=lambda record: (record.intended_at_s, record.task_id))),
            samples=tuple(self._samples),
            updates=self._feed.updates if self._feed is not None else updates_seen(self._samples),
            drifts_at_s=tuple(at_s for at_s in mix.changes() if at_s < self._plan[-1].at_s) if mix is not None else (),
            mixes=tuple((phase.start_at_s, dict(phase.shares)) for phase in mix.phases) if mix is not None else (),
            scores_sent=self._scores_sent,
            scores_refused=self._scores_refused,
            edges=tuple(_description_of(edge) for edge in sorted(listing.edges, key=lambda edge: edge.edge_id)),
        )


def _description_of(edge: broker_pb2.Edge) -> EdgeDescription:
    links = {region: link_from_proto(link) for region, link in sorted(edge.links.items())}
    return EdgeDescription(edge.edge_id, edge.memory_bytes, edge.max_batch, edge.max_queue, links)


def _sample_of(edge: broker_pb2.Edge, at_s: float) -> EdgeSample:
    state = worker_pb2.EdgeState.Name(edge.state).removeprefix("EDGE_STATE_").lower()
    return EdgeSample(
        at_s=at_s,
        edge_id=edge.edge_id,
        version=edge.version,
        state=state,
        outstanding_tasks=edge.outstanding_tasks,
        predicted_queue_wait_s=seconds(edge.predicted_queue_wait),
        updates=edge.updates,
        model_bytes=edge.model_bytes,
        memory_bytes=edge.memory_bytes,
        mix=dict(edge.mix),
        step_times=step_times_from_proto(edge.step_times) if edge.HasField("step_times") else None,
    )
