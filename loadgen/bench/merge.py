"""Merging at full size, beside M-SMoE written down plainly: seconds, memory, and how near they come to what the memory can move.

The model has random weights and answers nothing, so its routing is given: even, and as a trained model routed its own calibration items.
Both sides begin with the experts in the page cache and end with merged experts; ours is also timed until they are blobs on the disk.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from loadgen.bench import machine, routing
from loadgen.bench.full_size import INDEX, num_params, write_checkpoint
from loadgen.bench.merge_figures import MergeFigures, MergeOptions, NextMix, Prepared, RoutingFigures
from loadgen.bench.merge_rounds import Beside, Request, aligned_again, beside, drop_page_cache, remerge, warm
from loadgen.bench.sizes import Sizes
from loadgen.units import in_bytes
from services.core.merging.plan import make_plan
from services.core.merging.present import changed_groups
from services.core.merging.recipes import PAPER
from services.core.merging.values import BaseProfiles, MergePlan
from services.model.aligning_ahead import align_ahead, missing_pairs, pairs
from services.model.alignment import Aligned, align
from services.model.checkpoint import BaseModel, read_base
from services.model.memory import budget_for

MOVED_SHARE = 0.2  # of all tasks, from the others to the first type: what the next mix differs in
TOLD_EVERY = 25  # pairs
SPARE_BYTES = 4 << 30  # left free on the disk

Tell = Callable[[str], None]


def measure(options: MergeOptions, tell: Tell) -> MergeFigures:
    """All in one run. What an earlier run left in `scratch` is used again, with the seconds that its preparation took then."""
    _check_room(options)
    write_checkpoint(options.scratch / "checkpoint", options.sizes, options.seed, options.trained_model, tell)
    base, prepared = _read(options.scratch, tell)
    aligned = align(base, options.scratch / "cache")
    requests = _requests(base, options)
    prepared = _aligned(options.scratch, aligned, requests, prepared, tell)
    bandwidth = machine.bandwidth_bytes_per_s()
    routings = {name: _measured(base, aligned, request, options, bandwidth, tell) for name, request in requests.items()}
    return MergeFigures(
        options.sizes, options.seed, options.budget_bytes, base.full_bytes, machine.describe(), bandwidth, prepared, routings
    )


def remove(scratch: Path) -> None:
    """What a run left, and nothing else that may lie there."""
    for name in ("checkpoint", "cache", "store"):
        shutil.rmtree(scratch / name, ignore_errors=True)
    (scratch / "prepared.json").unlink(missing_ok=True)
    with suppress(OSError):
        scratch.rmdir()


def _check_room(options: MergeOptions) -> None:
    options.scratch.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in options.scratch.rglob("*") if path.is_file())
    needed = 8 * num_params(options.sizes) + 2 * options.budget_bytes + SPARE_BYTES - there
    free = shutil.disk_usage(options.scratch).free
    if free < needed:
        raise OSError(f"scratch: {in_bytes(free)} are free in {options.scratch}, {in_bytes(needed)} are needed")


def _read(scratch: Path, tell: Tell) -> tuple[BaseModel, Prepared]:
    told = scratch / "prepared.json"
    if told.exists() and told.stat().st_mtime > (scratch / "checkpoint" / INDEX).stat().st_mtime:
        tell("prepared before: read")
        return read_base(scratch / "checkpoint", cache_dir=scratch / "cache"), Prepared(**json.loads(told.read_bytes()))
    tell("prepare: experts in the order of merging")
    shutil.rmtree(scratch / "cache", ignore_errors=True)
    machine.reset_peak()
    began_s = time.perf_counter()
    base = read_base(scratch / "checkpoint", cache_dir=scratch / "cache")
    prepared = Prepared(time.perf_counter() - began_s, machine.peak_rss_bytes())
    told.write_text(json.dumps(asdict(prepared)))
    return base, prepared


def _requests(base: BaseModel, options: MergeOptions) -> dict[str, Request]:
    """By routing: all task types equally, with profiles that plans for any mix can be made of."""
    profiles = {
        "even": routing.even(base.base_id, options.sizes, options.seed),
        "measured": routing.measured(base.base_id, options.sizes, options.trained_model, options.trained_tasks),
    }
    return {name: Request(of_routing, partial(_plan, base, of_routing, options.budget_bytes)) for name, of_routing in profiles.items()}


def _plan(
    base: BaseModel, profiles: BaseProfiles, budget_bytes: int, mix: Mapping[str, float], present: MergePlan | None = None
) -> MergePlan:
    budget = budget_for(base.model, budget_bytes)
    return make_plan(profiles, mix, budget, allocation=PAPER.allocation, method=PAPER.method, present=present)


def _aligned(scratch: Path, aligned: Aligned, requests: Mapping[str, Request], before: Prepared, tell: Tell) -> Prepared:
    """Pairs that a plan for each task type alone or for all of them asks for. What they took is kept on the way: a run may end early."""
    began_s = time.perf_counter()

    def kept(done: int) -> Prepared:
        aligned.save()
        prepared = replace(before, num_pairs=before.num_pairs + done, align_s=before.align_s + time.perf_counter() - began_s)
        (scratch / "prepared.json").write_text(json.dumps(asdict(prepared)))
        return prepared

    def told(done: int, of: int) -> None:
        if done % TOLD_EVERY == 0:
            tell(f"prepare: pair {done} of {of} aligned")
            kept(done)

    found = align_ahead(aligned, [request.plan(mix) for request in requests.values() for mix in request.prepared_mixes()], told)
    return kept(found) if found else before


def _measured(base: BaseModel, aligned: Aligned, request: Request, options: MergeOptions, bandwidth: float, tell: Tell) -> RoutingFigures:
    name = "/".join(request.profiles.task_types)
    mix = request.all_equally
    plan = request.plan(mix)
    seconds, peaks = [], []
    for n in range(options.rounds):
        store_dir = options.scratch / "store"
        shutil.rmtree(store_dir, ignore_errors=True)
        for stack in base.model.experts:
            warm(stack)
        machine.reset_peak()
        began_s = time.perf_counter()
        refs = remerge(base, aligned, request.plan(mix), store_dir)
        seconds.append(time.perf_counter() - began_s)
        peaks.append(machine.peak_rss_bytes())
        tell(f"{name}: re-merge {n + 1} of {options.rounds}: {seconds[-1]:.2f} s")
    tell(f"{name}: beside the plain one")
    compared = beside(base, aligned, request, plan, refs, store_dir, options.rounds)
    tell(f"{name}: in memory {compared.ours_s:.2f} s, the plain one {compared.plain_s:.2f} s, {compared.in_place_s:.2f} s in place")
    tell(f"{name}: the plain one aligns one layer again")
    again_s = compared.plain_s + aligned_again(base, aligned, request, plan)
    next_mix = _next_mix(base, aligned, request, plan, store_dir, tell)
    shutil.rmtree(store_dir)
    tell(f"{name}: from the disk")
    drop_page_cache(base, options.scratch / "cache")
    began_s = time.perf_counter()
    remerge(base, aligned, request.plan(mix), store_dir)
    cold_s = time.perf_counter() - began_s
    shutil.rmtree(store_dir)
    return _figures(plan, options.sizes, seconds, max(peaks), cold_s, again_s, compared, bandwidth, next_mix)


def _figures(
    plan: MergePlan,
    sizes: Sizes,
    seconds: Sequence[float],
    peak: int,
    cold_s: float,
    again_s: float,
    compared: Beside,
    bandwidth: float,
    next_mix: NextMix | None,
) -> RoutingFigures:
    moved = 4 * sizes.expert_params * (compared.experts_read + plan.experts_kept)
    return RoutingFigures(
        experts_kept=plan.experts_kept,
        experts_read=compared.experts_read,
        pairs=len(pairs(plan)),
        remerge_s=statistics.median(seconds),
        slowest_remerge_s=max(seconds),
        cold_s=cold_s,
        peak_rss_bytes=peak,
        plan_s=compared.plan_s,
        in_memory_s=compared.ours_s,
        same_alignment_s=compared.plain_s,
        in_place_s=compared.in_place_s,
        align_again_s=again_s,
        moved_bytes=moved,
        limit_s=moved / bandwidth,
        groups_agree=compared.groups_agree,
        max_abs_diff=compared.max_abs_diff,
        next_mix=next_mix,
    )


def _next_mix(base: BaseModel, aligned: Aligned, request: Request, plan: MergePlan, store_dir: Path, tell: Tell) -> NextMix | None:
    moved = request.moved(MOVED_SHARE)
    if moved is None:
        return None
    after, own = request.plan(moved, plan), aligned.apart()  # for another run, they are to be missing again
    missing = len(missing_pairs(own, [after]))
    tell(f"next mix: {missing} pairs to align first")
    began_s = time.perf_counter()
    align_ahead(own, [after])
    aligned_at_s = time.perf_counter()
    remerge(base, own, request.plan(moved, plan), store_dir)
    ended_s = time.perf_counter()
    tell(f"next mix: aligned in {aligned_at_s - began_s:.2f} s, merged in {ended_s - aligned_at_s:.2f} s")
    changed = len(changed_groups(after, plan))
    return NextMix(after.experts_kept, changed, missing, aligned_at_s - began_s, ended_s - aligned_at_s)
