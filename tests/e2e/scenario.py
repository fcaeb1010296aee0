"""One fault under load, from the first call to its row of the table: pours calls, marks the faults, judges what was recorded."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moedge.v1 import events_pb2
from services.tasks.values import TaskItem
from tests.harness import history
from tests.harness.checker import check, gaps, terminal, unfinished
from tests.harness.compose import ComposeStack
from tests.harness.faults import ContainerFault
from tests.harness.history import OK, Call, Fault
from tests.harness.recorder import Calls
from tests.harness.table import Latency, Row, num_refused, slowest_recovery_s
from tests.harness.tap import Tap, TapError
from tests.harness.versions import check_counts, check_versions, deduplicated

RATE_PER_S = 5.0
DEADLINE_S = 15.0
REGIONS = ("west", "centre", "east")
QUIET_S = 15.0
LEDGER_WITHIN_S = 30.0
LATE_EVENTS_S = 2.0  # what would come twice has come by then
ANSWERED = 0.99


async def quiet_phase(stack: ComposeStack, items: Sequence[TaskItem]) -> list[Call]:
    await stack.whole()
    async with stack.channel() as channel:
        calls, stop = Calls(channel, f"quiet-{uuid.uuid4().hex[:6]}", DEADLINE_S, regions=REGIONS), asyncio.Event()
        load = asyncio.create_task(calls.pour(items, RATE_PER_S, np.random.default_rng(1), stop))
        await calls.clock.sleep(QUIET_S)
        stop.set()
        await load
    return calls.ended


@dataclass(slots=True)
class Scenario:
    """A fault's load and what was seen of it. `row` is complete after `judge`."""

    stack: ComposeStack
    tap: Tap
    calls: Calls
    row: Row
    folder: Path
    faults: list[Fault] = field(default_factory=list)
    sent_back: list[tuple[str, str]] = field(default_factory=list)  # (edge, version) of updates that the test made

    def now_s(self) -> float:
        return self.stack.clock.now_s()

    async def wait(self, seconds: float) -> None:
        await self.stack.clock.sleep(seconds)

    @asynccontextmanager
    async def during(
        self, fault: ContainerFault, *, settles_s: float, kills_broker: bool = False, drains: bool = False
    ) -> AsyncIterator[None]:
        """The fault while inside, healed afterwards; what users meet until `settles_s` after the healing is put down to it."""
        began_at_s = self.now_s()
        try:
            async with fault:
                yield
        finally:
            self.faults.append(Fault(began_at_s, self.now_s() + settles_s, kills_broker, drains, fault.name))

    def sent_between(self, from_s: float, to_s: float) -> list[Call]:
        return [call for call in self.calls.ended if from_s <= call.sent_at_s < to_s]

    async def judge(self, *, answered: float = ANSWERED, whole_brokers: bool = True) -> list[events_pb2.TaskEvent]:
        """Fill the row from what was recorded, keep the records, and fail on any broken promise; the task events of these calls."""
        events = await self._settled()
        users = set(self.calls.sent)
        mine = [event for event in events if event.user_id in users]
        self._keep(mine)
        violations = self._violations(events, mine, whole_brokers=whole_brokers)
        self._fill(mine)
        assert not violations, "\n".join([f"{len(violations)} promises broken", *violations[:20]])
        assert self.row.lost == self.row.duplicated == 0
        assert self.row.answered >= answered * self.row.sent, self.calls.failed[:5]
        return mine

    async def _settled(self) -> list[events_pb2.TaskEvent]:
        give_up_at_s = self.now_s() + LEDGER_WITHIN_S
        while not await self._read() or unfinished(self.calls.ended, self._mine()):
            if self.now_s() > give_up_at_s:
                break
        await self.wait(LATE_EVENTS_S)
        await self.tap.read()
        return self.tap.task_events

    async def _read(self) -> bool:
        try:
            await self.tap.read()
        except TapError:
            return False
        return True

    def _mine(self) -> list[events_pb2.TaskEvent]:
        users = set(self.calls.sent)
        return [event for event in self.tap.task_events if event.user_id in users]

    def _violations(self, events: list[events_pb2.TaskEvent], mine: list[events_pb2.TaskEvent], *, whole_brokers: bool) -> list[str]:
        swapped = {e.event_id: (e.edge_id, e.version) for e in self.tap.merges if e.kind == events_pb2.MERGE_EVENT_KIND_SWAPPED}
        violations = check(self.calls.sent, self.calls.ended, mine, self.faults)
        violations += check_versions(self.calls.ended, mine, [*swapped.values(), *self.sent_back])
        violations += check_counts(self.tap.reports, events).violations
        if whole_brokers:
            producers = {event.producer_id for event in mine if event.kind == events_pb2.TASK_EVENT_KIND_DISPATCHED}
            violations += gaps(events, producers)
        return violations

    def _fill(self, mine: list[events_pb2.TaskEvent]) -> None:
        row, ended = self.row, self.calls.ended
        row.sent, row.answered = len(self.calls.sent), sum(call.status == OK for call in ended)
        row.refused = num_refused(ended, self.faults)
        row.lost = len(unfinished(ended, mine))
        ends = [event.task_id for event in terminal(deduplicated(mine))]
        row.duplicated = len(ends) - len(set(ends))
        row.recovery_s = slowest_recovery_s(ended, self.faults) if row.recovery_s is None else row.recovery_s
        row.latency = Latency.of(ended)

    def _keep(self, mine: list[events_pb2.TaskEvent]) -> None:
        history.write_calls(self.folder / "calls.jsonl", self.calls.ended)
        history.write_faults(self.folder / "faults.jsonl", self.faults)
        history.write_events(self.folder / "events.jsonl", mine)


@dataclass(slots=True)
class Scenarios:
    """Makes scenarios; their rows go into the table, met or not."""

    stack: ComposeStack
    tap: Tap
    items: Sequence[TaskItem]
    quiet: list[Call]
    out: Path
    rows: list[Row]

    @asynccontextmanager
    async def loaded(
        self,
        name: str,
        must: str,
        *,
        rate_per_s: float = RATE_PER_S,
        deadline_s: float = DEADLINE_S,
        retrying: bool = True,
        regions: Sequence[str] = REGIONS,
        alpha: float = 0.5,
        burst: int = 1,
    ) -> AsyncIterator[Scenario]:
        """Load runs while inside. Call `judge` after leaving; a test that ends before has a row that was not met."""
        row = Row(name, must, quiet=Latency.of(self.quiet))
        self.rows.append(row)
        slug = name.replace(" ", "-").replace("/", "-")
        async with self.stack.channel() as channel:
            calls = Calls(channel, f"{slug}-{uuid.uuid4().hex[:6]}", deadline_s, retrying, regions, alpha)
            stop, rng = asyncio.Event(), np.random.default_rng(len(self.rows))
            async with asyncio.TaskGroup() as group:
                group.create_task(calls.pour(self.items, rate_per_s, rng, stop, burst))
                try:
                    yield Scenario(self.stack, self.tap, calls, row, self.out / slug)
                finally:
                    stop.set()
