"""Swaps one worker through versions of a drifting mix while users stream tokens from it, after the same load without swaps."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loadgen.bench.machine import bandwidth_bytes_per_s, describe
from loadgen.bench.swap.figures import SizeFigures, Swap, SwapFigures
from loadgen.bench.swap.memory import PeakMemory
from loadgen.bench.swap.shapes import SHAPES, num_words
from loadgen.bench.swap.sites import TOLD, Source, WorkerOptions, serve_merger, serve_worker
from loadgen.bench.swap.streams import Streams
from loadgen.bench.swap.versions import VersionsOptions
from loadgen.child import ChildStack
from moedge.v1 import worker_pb2, worker_pb2_grpc
from services.runtime.clock import SystemClock
from services.runtime.net import channel

MAKING_S = 1200.0  # versions are made within, else something hangs
SWAP_TIMEOUT_S = 300.0
SETTLED_EVERY_S = 0.01
WORKING_BYTES = 256 << 20  # of a swap beside the weights it loads: blobs on their way, caches of tasks of a second version
CACHED_MODELS = 3  # versions whose blobs the worker's disk may hold

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SwapOptions:
    shape: str
    fractions: tuple[float, ...]  # of experts kept
    num_swaps: int
    num_users: int
    quiet_s: float
    reserve_bytes: int | None  # None: what the largest of the updates asks for
    seed: int


def measure(options: SwapOptions, source: Source, tell: Tell) -> SwapFigures:
    sizes = []
    for fraction in options.fractions:
        with tempfile.TemporaryDirectory(prefix="moedge-swap-") as directory:
            sizes.append(asyncio.run(_one_size(options, fraction, source, Path(directory), tell)))
    tell("memory bandwidth")
    return SwapFigures(options.shape, tuple(sizes), bandwidth_bytes_per_s(), describe())


async def _one_size(options: SwapOptions, fraction: float, source: Source, directory: Path, tell: Tell) -> SizeFigures:
    wanted = VersionsOptions(options.shape, fraction, options.num_swaps + 1, options.seed)

    def hear(kind: str, body: bytes) -> None:
        if kind == TOLD:
            tell(f"{fraction:.0%}: {body.decode()}")

    async with ChildStack(partial(serve_merger, directory, source, wanted), hear, MAKING_S) as made:
        versions = json.loads(made["versions"])
        model_bytes = max(version["model_bytes"] for version in versions)
        reserve_bytes = options.reserve_bytes
        if reserve_bytes is None:
            reserve_bytes = WORKING_BYTES + max(version["changed_bytes"] for version in versions)
        worker_options = WorkerOptions(model_bytes + reserve_bytes, reserve_bytes, options.num_users, CACHED_MODELS * model_bytes)
        tell(f"{fraction:.0%}: starting a worker")
        async with ChildStack(partial(serve_worker, directory, worker_options), hear, niceness=0) as worker:
            site = _Site(made["merger"], worker["worker"], int(worker["pid"]), [version["version"] for version in versions[1:]])
            run = await site.run(options, lambda what: tell(f"{fraction:.0%}: {what}"))
    mean_changed_bytes = sum(version["changed_bytes"] for version in versions) // options.num_swaps
    return run.figures(fraction, versions[0]["model_bytes"], model_bytes, reserve_bytes, mean_changed_bytes)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """One update as it was seen from outside."""

    began_at_s: float
    ended_at_s: float  # no task ran on the version before any more
    report: worker_pb2.SwapReport
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class _Run:
    streams: Streams
    quiet_began_at_s: float
    quiet_ended_at_s: float
    quiet_peak_bytes: int
    loaded: tuple[_Loaded, ...]

    def figures(self, fraction: float, first_bytes: int, model_bytes: int, reserve_bytes: int, mean_changed_bytes: int) -> SizeFigures:
        quiet = self.streams.between(self.quiet_began_at_s, self.quiet_ended_at_s)
        quiet_p99_s = float(np.percentile(quiet, 99))
        swaps = tuple(self._swap(loaded, quiet_p99_s, float(quiet.mean())) for loaded in self.loaded)
        window_s = float(np.mean([swap.window_s for swap in swaps]))
        return SizeFigures(
            fraction=fraction,
            swaps=swaps,
            completed=self.streams.num_completed,
            failures=tuple(self.streams.failures),
            quiet_median_s=float(np.median(quiet)),
            quiet_p99_s=quiet_p99_s,
            quiet_stall_p99_s=self._quiet_stall_s(window_s, quiet_p99_s),
            quiet_tokens_per_s=len(quiet) / (self.quiet_ended_at_s - self.quiet_began_at_s),
            model_bytes=model_bytes,
            reserve_bytes=reserve_bytes,
            base_rss_bytes=self.quiet_peak_bytes - first_bytes,
            quiet_rss_bytes=self.quiet_peak_bytes,
            mean_changed_bytes=mean_changed_bytes,
        )

    def _swap(self, loaded: _Loaded, quiet_p99_s: float, quiet_mean_s: float) -> Swap:
        gaps, report = self.streams.between(loaded.began_at_s, loaded.ended_at_s), loaded.report
        fetch_s, load_s = report.fetch.ToNanoseconds() / 1e9, report.load.ToNanoseconds() / 1e9
        began_at_s, fetched_at_s = loaded.began_at_s, loaded.began_at_s + fetch_s
        phases = ((began_at_s, fetched_at_s), (fetched_at_s, fetched_at_s + load_s), (fetched_at_s + load_s, loaded.ended_at_s))
        by_phase = tuple(_longest(self.streams.between(*phase)) for phase in phases)
        return Swap(
            window_s=loaded.ended_at_s - loaded.began_at_s,
            fetch_s=fetch_s,
            load_s=load_s,
            longest_by_phase_s=(by_phase[0], by_phase[1], by_phase[2]),
            downtime_s=report.downtime.ToNanoseconds() / 1e9,
            longest_gap_s=float(gaps.max(initial=0.0)),
            stall_s=float(gaps.max(initial=0.0)) - quiet_p99_s,
            lost_token_s=float((gaps - quiet_mean_s).sum()),
            bytes_fetched=report.bytes_fetched,
            bytes_full=report.bytes_full,
            peak_rss_bytes=loaded.peak_rss_bytes,
        )

    def _quiet_stall_s(self, window_s: float, quiet_p99_s: float) -> float:
        """What the measure of a stall gives where nothing is swapped: over windows as long as a swap's."""
        starts = np.arange(self.quiet_began_at_s, max(self.quiet_ended_at_s - window_s, self.quiet_began_at_s + 1e-9), window_s / 2)
        longest = [_longest(self.streams.between(start, start + window_s)) for start in starts]
        return float(np.percentile(longest, 99)) - quiet_p99_s


def _longest(gaps: NDArray[np.float64]) -> float:
    return float(gaps.max(initial=0.0))


@dataclass(frozen=True, slots=True)
class _Site:
    merger: str
    worker: str
    pid: int
    versions: Sequence[str]  # to swap to, in this order

    async def run(self, options: SwapOptions, tell: Tell) -> _Run:
        clock, streams = SystemClock(), Streams(num_words(SHAPES[options.shape]))
        async with streams.sent_to(self.worker, options.num_users, options.seed), channel(self.worker) as to_worker:
            control = worker_pb2_grpc.WorkerServiceStub(to_worker)
            await clock.sleep(min(5.0, options.quiet_s / 2))  # until tasks of different users are at different places
            with PeakMemory(self.pid) as peak:
                tell(f"{options.quiet_s:g} s without swaps")
                peak.take_bytes()
                began_at_s = time.perf_counter()
                await clock.sleep(options.quiet_s)
                ended_at_s, quiet_peak_bytes = time.perf_counter(), peak.take_bytes()
                loaded = []
                for number, version in enumerate(self.versions, 1):
                    tell(f"swap {number} of {len(self.versions)}")
                    loaded.append(await self._load(control, streams, peak, clock, version))
        return _Run(streams, began_at_s, ended_at_s, quiet_peak_bytes, tuple(loaded))

    async def _load(
        self, control: worker_pb2_grpc.WorkerServiceAsyncStub, streams: Streams, peak: PeakMemory, clock: SystemClock, version: str
    ) -> _Loaded:
        peak.take_bytes()
        began_at_s = time.perf_counter()
        request = worker_pb2.LoadVersionRequest(version=version, merger_address=self.merger)
        answer = await control.LoadVersion(request, timeout=SWAP_TIMEOUT_S)
        while streams.versions - {version}:
            await clock.sleep(SETTLED_EVERY_S)
        return _Loaded(began_at_s, time.perf_counter(), answer.report, peak.take_bytes())
