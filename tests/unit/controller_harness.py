"""A merger, one worker and the shared stores around controllers in-process: real gRPC, virtual time, the in-memory event log, fakeredis."""

from contextlib import AsyncExitStack, asynccontextmanager

from services.controller.service import Controller
from services.controller.settings import ControllerSettings
from services.runtime.clock import SystemClock, VirtualClock
from services.runtime.eventlog import MERGE_EVENTS
from services.runtime.eventlog_memory import MemoryBroker, MemoryEventLog
from services.runtime.events import EventWriter, kind_word, read_merge
from services.runtime.store import EdgeRegistry, open_redis
from tests.fakes.controller_worker import FakeControllerWorker
from tests.fakes.merger import FakeMerger
from tests.unit.merging_builders import make_profiles, per_task

PROFILES = per_task(make_profiles(3, num_layers=6, num_experts=16, tokens_per_task=40))
MIX = {"facts": 0.6, "pick": 0.4}
OTHER = {"pronoun": 1.0}
FAR_S = 1e9  # the controller's own loop ticks once; tests tick


async def reports_arrive():
    """The in-memory log hands records over within a few turns of the loop; fakeredis takes a few more."""
    for _ in range(20):
        await SystemClock().sleep(0.001)


class Fleet:
    """A merger, a worker and the shared stores; controllers come and go."""

    def __init__(self, clock, broker, redis, merger, worker):
        self.clock, self.broker, self.redis = clock, broker, redis
        self.merger, self.worker = merger, worker

    def settings(self, **overrides):
        usual = {"trigger": "jtom", "tick_s": FAR_S, "interval_s": 20.0, "backoff_s": 5.0}
        return ControllerSettings.load(**{"merger_address": self.merger.address, **usual, **overrides})

    @asynccontextmanager
    async def controller(self, *, log=None, **overrides):
        log = log or MemoryEventLog(self.clock, self.broker)
        async with Controller(self.settings(**overrides), log, self.redis, self.clock) as controller:
            await self.look(controller)
            yield controller

    async def look(self, controller, after_s=0.0):
        """Let reports arrive, move on, look at every edge, and wait for what that starts."""
        await reports_arrive()
        await self.clock.advance(after_s)
        await controller.tick()
        await controller.settled()

    async def events(self):
        log = MemoryEventLog(self.clock, self.broker)
        return [read_merge(record) async for record in log.read_all(MERGE_EVENTS)]

    async def kinds(self):
        return [kind_word(event) for event in await self.events()]


@asynccontextmanager
async def running_fleet():
    """One edge, and nobody who watches it yet."""
    clock, broker, redis = VirtualClock(), MemoryBroker(), open_redis(None)
    async with AsyncExitStack() as stack:
        # The generated bases answer UNIMPLEMENTED for what the fakes leave out.
        fake_merger = FakeMerger(PROFILES)  # type: ignore[abstract]
        merger = await stack.enter_async_context(fake_merger.serving())
        events = EventWriter(MemoryEventLog(clock, broker), "worker-a", clock)
        worker = FakeControllerWorker("edge-a", EdgeRegistry(redis, clock), events, PROFILES)  # type: ignore[abstract]
        await stack.enter_async_context(worker.serving(merger.version_for(MIX)))
        yield Fleet(clock, broker, redis, merger, worker)
    await redis.aclose()
