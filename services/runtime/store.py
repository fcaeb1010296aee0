"""What lives in Redis: the registry of edges, the brokers' outstanding work, trigger state. All of it can be lost and is rebuilt.

Nothing here is called on a request path; callers refresh on a timer. Errors of Redis never leave this module: they are counted, open a
breaker, and the answer is what was last known.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar

import redis.asyncio
from fakeredis import FakeAsyncRedis, FakeServer
from google.protobuf.message import DecodeError
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from moedge.v1.worker_pb2 import EdgeEntry
from services.core.offload.values import Work
from services.runtime.breaker import Breaker
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import SettingsError

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 0.1
CALL_TIMEOUT_S = 0.3
ENTRY_TTL_S = 3.0
WORK_MAX_AGE_S = 3.0
WORK_KEY_TTL_S = 5
TRIGGER_TTL_S = 24 * 3600

EDGE_KEY = "moedge:edge:"
WAIT_KEY = "moedge:wait:"
TRIGGER_KEY = "moedge:trigger:"

T = TypeVar("T")


def edge_key(edge_id: str) -> str:
    """The braces are a cluster hash tag: all keys of one edge share a slot."""
    return f"{EDGE_KEY}{{{edge_id}}}"


def wait_key(edge_id: str) -> str:
    return f"{WAIT_KEY}{{{edge_id}}}"


def trigger_key(edge_id: str) -> str:
    return f"{TRIGGER_KEY}{{{edge_id}}}"


def open_redis(url: str | None) -> redis.asyncio.Redis:
    """A client with a hard socket timeout; None gives an in-process fake (share one client between the services of a process).

    RESP2: the server's side of RESP3 pushes is not used, and pooled sockets that it closed are noticed. Close with `aclose()`. Raises
    `SettingsError` for a URL that is none.
    """
    if url is None:
        fake: redis.asyncio.Redis = FakeAsyncRedis(server=FakeServer())
        return fake
    try:
        return redis.asyncio.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
            health_check_interval=0,
        )
    except ValueError as error:  # neither the URL nor the error is told: they may hold a password
        raise SettingsError("redis_url: no URL of Redis; write redis://HOST:PORT") from error


async def heeding_cancellation(call: Awaitable[T]) -> T:
    """The call's result, unless this task was cancelled meanwhile.

    The Redis client sends through `asyncio.wait_for`, which on Python 3.11 drops a cancellation that meets its result; the loop that was to
    end would go on for ever, and whoever waits for it too.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


class _Calls:
    """Runs calls of one store: bounded in time, behind a breaker, errors counted."""

    def __init__(self, clock: Clock | None) -> None:
        self.clock = clock or SystemClock()
        self.num_errors = 0
        self._breaker = Breaker(self.clock)

    @property
    def connected(self) -> bool:
        return self._breaker.healthy

    async def run(self, call: Callable[[], Awaitable[T]], unchanged: T) -> T:
        return await heeding_cancellation(self._run(call, unchanged))

    async def _run(self, call: Callable[[], Awaitable[T]], unchanged: T) -> T:
        if not self._breaker.allows:
            return unchanged
        was_connected = self.connected
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                answer = await call()
        except (RedisError, OSError, TimeoutError) as error:
            self.num_errors += 1
            self._breaker.failed()
            if was_connected:
                logger.warning("redis does not answer (%s); going on with what is known", error or type(error).__name__)
            return unchanged
        if not was_connected:
            logger.info("redis answers again")
        self._breaker.succeeded()
        return answer


class EdgeRegistry:
    """`moedge:edge:{id}`: each worker puts its own entry every second; brokers and controllers read all of them.

    An entry that vanished without being removed (a flush, a late heartbeat) stays `grace_s` longer, so a flush empties nobody's view.
    """

    def __init__(self, redis: redis.asyncio.Redis, clock: Clock | None = None, *, grace_s: float = 1.5) -> None:
        self._redis = redis
        self._calls = _Calls(clock)
        self._grace_s = grace_s
        self._known: dict[str, tuple[EdgeEntry, float]] = {}  # entry, last seen at

    @property
    def connected(self) -> bool:
        return self._calls.connected

    @property
    def num_errors(self) -> int:
        return self._calls.num_errors

    async def put(self, entry: EdgeEntry, ttl_s: float = ENTRY_TTL_S) -> None:
        async def call() -> None:
            await self._redis.set(edge_key(entry.edge_id), entry.SerializeToString(), px=int(ttl_s * 1000))

        await self._calls.run(call, None)

    async def all(self) -> dict[str, EdgeEntry]:
        """Every edge by id, sorted. While Redis is away: as last read."""
        found = await self._calls.run(self._read, None)
        now_s = self._calls.clock.now_s()
        if found is not None:
            for edge_id, entry in found.items():
                if entry is None:
                    self._known.pop(edge_id, None)
                else:
                    self._known[edge_id] = (entry, now_s)
            self._known = {e: known for e, known in self._known.items() if now_s - known[1] <= self._grace_s}
        return {edge_id: self._known[edge_id][0] for edge_id in sorted(self._known)}

    async def remove(self, edge_id: str) -> None:
        """Take the edge out for every reader at once: an empty value says "gone", where a missing one may be a flush."""
        self._known.pop(edge_id, None)

        async def call() -> None:
            await self._redis.set(edge_key(edge_id), b"", px=int(ENTRY_TTL_S * 1000))

        await self._calls.run(call, None)

    async def _read(self) -> dict[str, EdgeEntry | None]:
        keys = sorted([_text(key) async for key in self._redis.scan_iter(match=f"{EDGE_KEY}*", count=1000)])
        values = await self._redis.mget(keys) if keys else []
        found: dict[str, EdgeEntry | None] = {}
        for key, value in zip(keys, values, strict=True):
            if value is None:
                continue
            try:
                found[_id(key, EDGE_KEY)] = EdgeEntry.FromString(_bytes(value)) if value else None
            except DecodeError:
                self._calls.num_errors += 1
                logger.warning("unreadable registry entry at %s", key)
        return found


class WaitStore:
    """`moedge:wait:{edge}`: a hash with one field per broker, each written only by its owner, so nothing is counted twice.

    A field counts while its sequence number moves: one that stood still for `WORK_MAX_AGE_S` on this reader's clock is ignored and
    dropped, so a dead broker's share expires whatever the clocks of two hosts say. Publish at least once a second.
    """

    def __init__(self, redis: redis.asyncio.Redis, broker_id: str, clock: Clock | None = None) -> None:
        self._redis = redis
        self.broker_id = broker_id
        self._calls = _Calls(clock)
        self._seq = 0
        self._published: set[str] = set()
        self._seen: dict[tuple[str, str], tuple[int, float, Work]] = {}  # (edge, broker) -> seq, received at, work

    @property
    def connected(self) -> bool:
        return self._calls.connected

    @property
    def num_errors(self) -> int:
        return self._calls.num_errors

    async def publish(self, outstanding: Mapping[str, Work], wait_s_by_edge: Mapping[str, float] | None = None) -> None:
        """This broker's outstanding work by edge; edges published before and absent now lose the field."""
        self._seq += 1
        waits = wait_s_by_edge or {}
        stale = self._published - outstanding.keys()

        async def call() -> None:
            async with self._redis.pipeline(transaction=False) as pipe:
                for edge_id in sorted(outstanding):
                    pipe.hset(wait_key(edge_id), self.broker_id, self._field(outstanding[edge_id], waits.get(edge_id, 0.0)))
                    pipe.expire(wait_key(edge_id), WORK_KEY_TTL_S)
                for edge_id in sorted(stale):
                    pipe.hdel(wait_key(edge_id), self.broker_id)
                await pipe.execute()
            self._published = set(outstanding)

        if outstanding or stale:
            await self._calls.run(call, None)

    async def others(self, edge_ids: Collection[str] | None = None) -> dict[str, Work]:
        """Work of the other brokers by edge, of the given edges or of all that Redis has."""
        fields = await self._calls.run(lambda: self._read(edge_ids), None)
        now_s = self._calls.clock.now_s()
        if fields is not None:
            self._take(fields, now_s)
        expired = sorted(key for key, (_, at_s, _) in self._seen.items() if now_s - at_s > WORK_MAX_AGE_S)
        if fields is not None and (dropped := [key for key in expired if key in fields]):
            await self._calls.run(lambda: self._drop(dropped), None)
        total: dict[str, Work] = {}
        for (edge_id, _), (_, at_s, work) in sorted(self._seen.items(), key=lambda item: item[0]):
            if now_s - at_s <= WORK_MAX_AGE_S:
                total[edge_id] = total.get(edge_id, Work()) + work
        return total

    @property
    def living(self) -> frozenset[str]:
        """The other brokers whose fields still count, as of the last `others`."""
        now_s = self._calls.clock.now_s()
        return frozenset(broker_id for (_, broker_id), (_, at_s, _) in self._seen.items() if now_s - at_s <= WORK_MAX_AGE_S)

    def _field(self, work: Work, wait_s: float) -> str:
        return json.dumps(
            {
                "seq": self._seq,
                "num_tasks": work.num_tasks,
                "prefill_tokens": work.prefill_tokens,
                "decode_tokens": work.decode_tokens,
                "wait_s": round(wait_s, 6),
                "at": self._calls.clock.wall().isoformat(timespec="milliseconds"),
            }
        )

    def _take(self, fields: Mapping[tuple[str, str], tuple[int, Work]], now_s: float) -> None:
        for key in [key for key in self._seen if key not in fields]:
            del self._seen[key]
        for key, (seq, work) in fields.items():
            known = self._seen.get(key)
            if known is None or known[0] != seq:
                self._seen[key] = (seq, now_s, work)

    async def _read(self, edge_ids: Collection[str] | None) -> dict[tuple[str, str], tuple[int, Work]]:
        if edge_ids is None:
            edge_ids = [_id(_text(key), WAIT_KEY) async for key in self._redis.scan_iter(match=f"{WAIT_KEY}*", count=1000)]
        wanted = sorted(edge_ids)
        async with self._redis.pipeline(transaction=False) as pipe:
            for edge_id in wanted:
                pipe.hgetall(wait_key(edge_id))
            hashes = await pipe.execute() if wanted else []
        fields: dict[tuple[str, str], tuple[int, Work]] = {}
        for edge_id, values in zip(wanted, hashes, strict=True):
            for name, value in values.items():
                broker_id = _text(name)
                parsed = _parse(value) if broker_id != self.broker_id else None
                if parsed is not None:
                    fields[(edge_id, broker_id)] = parsed
        return fields

    async def _drop(self, keys: Collection[tuple[str, str]]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for edge_id, broker_id in keys:
                pipe.hdel(wait_key(edge_id), broker_id)
            await pipe.execute()


class TriggerStore:
    """`moedge:trigger:{id}`: an edge's merge trigger state as the controller dumps it. Lost state restarts from the deployed version."""

    def __init__(self, redis: redis.asyncio.Redis, clock: Clock | None = None) -> None:
        self._redis = redis
        self._calls = _Calls(clock)

    @property
    def connected(self) -> bool:
        return self._calls.connected

    @property
    def num_errors(self) -> int:
        return self._calls.num_errors

    async def put(self, edge_id: str, state: bytes) -> None:
        async def call() -> None:
            await self._redis.set(trigger_key(edge_id), state, ex=TRIGGER_TTL_S)

        await self._calls.run(call, None)

    async def get(self, edge_id: str) -> bytes | None:
        async def call() -> bytes | None:
            value = await self._redis.get(trigger_key(edge_id))
            return None if value is None else _bytes(value)

        return await self._calls.run(call, None)

    async def remove(self, edge_id: str) -> None:
        async def call() -> None:
            await self._redis.delete(trigger_key(edge_id))

        await self._calls.run(call, None)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _id(key: str, prefix: str) -> str:
    return key[len(prefix) :].removeprefix("{").removesuffix("}")


def _parse(value: bytes) -> tuple[int, Work] | None:
    """A field that is not ours to read (another version, garbage) counts as absent."""
    try:
        data = json.loads(value)
        return int(data["seq"]), Work(int(data["num_tasks"]), float(data["prefill_tokens"]), float(data["decode_tokens"]))
    except (ValueError, KeyError, TypeError):
        return None
