"""What merger and workers keep on disk: within their limits however many versions come, without what killed processes left, never less
than what a live version needs."""

from __future__ import annotations

import os
from pathlib import Path

import blake3
import pytest

from moedge.v1 import worker_pb2
from services.model.build import Builder, BuildSettings
from services.model.checkpoint import read_base
from tests.unit.pico import pico_tasks, write_pico_checkpoint
from tests.unit.serving_builders import budget_of, built, make_edge, running_merger, running_site

NUM_VERSIONS = 8


def held_bytes(blobs: Path) -> int:
    return sum(path.stat().st_size for path in blobs.iterdir())


def weight(manifest) -> int:
    """Of a version's blobs on disk, each once."""
    return sum({blob.digest: blob.size_bytes for blob in manifest.blobs}.values())


def mixes(num: int = NUM_VERSIONS) -> list[dict[str, float]]:
    return [{"left": n / 20, "right": 1 - n / 20} for n in range(num)]


async def test_a_worker_keeps_the_version_it_serves_and_the_one_before_over_many_swaps(tmp_path):
    async with running_merger(tmp_path) as merger:
        budget = budget_of(merger, 12)
        versions = [await built(merger, mix, budget) for mix in mixes()]
        async with running_site(tmp_path, merger.address, make_edge(budget), cache_limit_bytes=1) as site:
            served = site.worker.version
            blobs = tmp_path / "worker" / "small" / "blobs"
            for manifest in versions:
                await site.control.LoadVersion(worker_pb2.LoadVersionRequest(version=manifest.version), timeout=30)
                live = {blob.digest for kept in versions if kept.version in (served, manifest.version) for blob in kept.blobs}
                if served in {kept.version for kept in versions}:
                    assert {path.name for path in blobs.iterdir()} == live
                served = manifest.version
            assert len(list((tmp_path / "worker" / "small" / "manifests").iterdir())) == 2
            rolled = await site.control.RollBack(worker_pb2.RollBackRequest(), timeout=30)
            assert rolled.version == versions[-2].version
            assert (await site.answer()).version == versions[-2].version


async def test_a_limit_with_room_keeps_what_was_used_last_and_no_more(tmp_path):
    async with running_merger(tmp_path) as merger:
        budget = budget_of(merger, 12)
        versions = [await built(merger, mix, budget) for mix in mixes()]
        limit_bytes = 3 * max(map(weight, versions))
        async with running_site(tmp_path, merger.address, make_edge(budget), cache_limit_bytes=limit_bytes) as site:
            for manifest in versions:
                await site.control.LoadVersion(worker_pb2.LoadVersionRequest(version=manifest.version), timeout=30)
                assert held_bytes(tmp_path / "worker" / "small" / "blobs") <= limit_bytes


async def test_a_worker_that_starts_reclaims_what_a_killed_one_never_committed(tmp_path):
    async with running_merger(tmp_path) as merger:
        edge = make_edge(budget_of(merger, 12))
        async with running_site(tmp_path, merger.address, edge) as site:
            version = site.worker.version
        directory = tmp_path / "worker" / "small"
        needed = {path.name for path in (directory / "blobs").iterdir()}
        orphan = b"fetched and never committed"
        (directory / "blobs" / blake3.blake3(orphan).hexdigest()).write_bytes(orphan)
        (directory / "blobs" / f"{'a' * 64}.part").write_bytes(b"half a download")
        (directory / "blobs" / f".{'b' * 64}.xyz").write_bytes(b"half a write")
        (directory / "manifests" / "orphan").write_bytes(b"of a version that never served")
        (directory / ".committed.json.xyz").write_bytes(b"half a write")
        async with running_site(tmp_path, merger.address, edge, cache_limit_bytes=1) as site:
            assert site.worker.version == version
            assert {path.name for path in (directory / "blobs").iterdir()} == needed
            assert len(list((directory / "manifests").iterdir())) == 1
            assert {path.name for path in directory.iterdir()} == {"blobs", "manifests", "committed.json"}
            assert (await site.answer()).version == version


@pytest.fixture(scope="module")
def pico_checkpoint(tmp_path_factory):
    return write_pico_checkpoint(tmp_path_factory.mktemp("pico"))


def make_builder(directory: Path, checkpoint: Path, limit_bytes: int) -> Builder:
    settings = BuildSettings(profiled_items=8, measured_items=4, cache_limit_bytes=limit_bytes)
    return Builder(read_base(checkpoint), pico_tasks(), directory / "cache", settings)


def test_the_merger_stays_within_its_limit_over_many_builds_and_names_only_versions_it_has(tmp_path, pico_checkpoint):
    unlimited = make_builder(tmp_path / "unlimited", pico_checkpoint, 1 << 40)
    budget = unlimited.base.full_bytes // 2
    limit_bytes = 3 * weight(unlimited.build({"left": 1.0}, budget))
    builder = make_builder(tmp_path, pico_checkpoint, limit_bytes)
    manifests = builder.cache_dir / "manifests"
    for mix in mixes():
        latest = builder.build(mix, budget)
        assert not builder.store.missing(latest.digests)
        assert held_bytes(builder.store.directory) <= limit_bytes
        for path in manifests.glob("*.pb"):
            kept = builder.manifest(path.stem)
            assert kept is not None
            assert not builder.store.missing(kept.digests), "a version that it names can be fetched"
    assert 1 < len(list(manifests.glob("*.pb"))) < len(list((builder.cache_dir / "plans").glob("*.json"))), "some had to go"
    assert builder.build(mixes()[0], budget).version == unlimited.build(mixes()[0], budget).version


def test_a_merger_that_starts_reclaims_half_written_files_but_not_those_still_being_written(tmp_path, pico_checkpoint):
    builder = make_builder(tmp_path, pico_checkpoint, 1 << 40)
    manifest = builder.build({"left": 1.0}, builder.base.full_bytes // 2)
    junk, fresh = [], builder.cache_dir / "blobs" / ".being-written"
    for kind in ("blobs", "manifests", "plans"):
        junk.append(builder.cache_dir / kind / ".left.xyz")
        junk[-1].write_bytes(b"half a write")
        os.utime(junk[-1], (1000.0, 1000.0))
    fresh.write_bytes(b"half")
    os.utime(fresh, (3000.0, 3000.0))
    again = make_builder(tmp_path, pico_checkpoint, 1 << 40)
    again.reclaim(left_before_s=2000.0)
    assert not [path for path in junk if path.exists()]
    assert fresh.exists()
    assert not again.store.missing(manifest.digests)


def test_a_merger_that_starts_with_a_smaller_limit_comes_down_to_it(tmp_path, pico_checkpoint):
    builder = make_builder(tmp_path, pico_checkpoint, 1 << 40)
    weights = [weight(builder.build(mix, builder.base.full_bytes // 2)) for mix in mixes(4)]
    smaller = make_builder(tmp_path, pico_checkpoint, 2 * max(weights))
    smaller.reclaim(left_before_s=0.0)
    assert held_bytes(smaller.store.directory) <= 2 * max(weights)
