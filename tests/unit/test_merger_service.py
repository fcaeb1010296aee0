"""The merger over real loopback gRPC: builds, shared builds, refusals, blobs in chunks, profiles."""

from __future__ import annotations

import asyncio
import zlib

import blake3
import grpc
import pytest

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.merger.service import Merger
from services.model.aligning_ahead import missing_pairs
from services.model.build import BuildOptions
from services.model.errors import CheckpointError
from services.runtime.clock import SystemClock
from services.runtime.net import channel
from services.runtime.status import failure_of
from services.tasks.errors import TasksError
from tests.unit.serving_builders import budget_of, merger_settings, running_merger


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("merger")


@pytest.fixture
async def merger(shared):
    async with running_merger(shared) as running:
        yield running


@pytest.fixture
async def stub(merger):
    async with channel(merger.address) as to_merger:
        yield merger_pb2_grpc.MergerServiceStub(to_merger)


async def build(stub, **fields):
    return [response async for response in stub.BuildModel(merger_pb2.BuildModelRequest(**fields), timeout=60)]


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


async def test_a_merger_that_is_told_of_memories_aligns_for_them_before_it_serves(tmp_path):
    async with running_merger(tmp_path / "told") as merger:
        budget = budget_of(merger, 12)
        plan = merger.builder.plan({"left": 1.0}, budget, BuildOptions("m-smoe"))
        assert missing_pairs(merger.builder.aligned, [plan])
    async with running_merger(tmp_path / "told", prepared_budgets_bytes=(budget,)) as merger:
        assert not missing_pairs(merger.builder.aligned, [plan])
    with pytest.raises(ValueError, match="above 0"):
        merger_settings(tmp_path / "told", prepared_budgets_bytes=(0,))


async def test_a_build_streams_progress_and_ends_with_a_manifest_within_its_budget(tmp_path):
    async with running_merger(tmp_path) as merger, channel(merger.address) as to_merger:
        budget = budget_of(merger, 12)
        responses = await build(merger_pb2_grpc.MergerServiceStub(to_merger), mix={"left": 1.0}, budget_bytes=budget)
    kinds = [response.WhichOneof("event") for response in responses]
    manifest = responses[-1].manifest
    assert set(kinds[:-1]) == {"progress"}
    assert kinds[-1] == "manifest"
    fractions = [response.progress.fraction for response in responses[:-1]]
    assert fractions == sorted(fractions)
    assert "merge" in {response.progress.phase for response in responses[:-1]}
    assert (manifest.experts_kept, manifest.experts_total) == (12, 32)
    assert manifest.model_bytes <= budget
    assert set(manifest.quality) == set(manifest.profiles) == {"left", "right"}
    assert manifest.check_prompts


async def test_equal_requests_share_a_version_and_one_build(merger, stub):
    budget = budget_of(merger, 13)
    both = await asyncio.gather(*(build(stub, mix={"left": 0.5, "right": 0.5}, budget_bytes=budget) for _ in range(4)))
    versions = {responses[-1].manifest.version for responses in both}
    again = (await build(stub, budget_bytes=budget))[-1].manifest
    assert versions == {again.version}
    assert dict(again.mix) == {"left": 0.5, "right": 0.5}


async def test_near_equal_mixes_are_one_version(merger, stub):
    budget = budget_of(merger, 12)
    versions = [
        (await build(stub, mix={"left": share, "right": 1 - share}, budget_bytes=budget))[-1].manifest.version for share in (0.7, 0.712)
    ]
    assert versions[0] == versions[1]


async def test_a_caller_that_leaves_does_not_end_the_build(merger, stub):
    budget = budget_of(merger, 17)
    call = stub.BuildModel(merger_pb2.BuildModelRequest(mix={"right": 1.0}, budget_bytes=budget), timeout=60)
    await call.read()
    call.cancel()
    manifest = (await build(stub, mix={"right": 1.0}, budget_bytes=budget))[-1].manifest
    assert manifest.experts_kept == 17


async def test_raw_frequencies_stand_in_for_the_mix(merger, stub):
    rows = [merger_pb2.LayerFrequencies(values=[8, *[1] * 7]) for _ in range(4)]
    manifest = (await build(stub, raw_frequencies=rows, budget_bytes=budget_of(merger, 12)))[-1].manifest
    assert manifest.experts_kept == 12
    assert sum(manifest.mix.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("fields", "code", "field", "words"),
    [
        ({"mix": {"left": 1.0}, "budget_bytes": 1000}, grpc.StatusCode.OUT_OF_RANGE, "budget_bytes", "smallest that works is"),
        ({"mix": {"up": 1.0}}, grpc.StatusCode.INVALID_ARGUMENT, "mix", "'up'"),
        ({"mix": {"left": 0.4}}, grpc.StatusCode.INVALID_ARGUMENT, "mix", "sum to 1"),
        ({"mix": {"left": float("nan")}}, grpc.StatusCode.INVALID_ARGUMENT, "mix", "numbers"),
        ({"base_model": "other"}, grpc.StatusCode.NOT_FOUND, None, "other"),
        ({"options": merger_pb2.PlanOptions(method="zip")}, grpc.StatusCode.INVALID_ARGUMENT, "options", "zip"),
        ({"options": merger_pb2.PlanOptions(allocation="magic")}, grpc.StatusCode.INVALID_ARGUMENT, "options", "magic"),
        ({"raw_frequencies": [merger_pb2.LayerFrequencies(values=[1])]}, grpc.StatusCode.INVALID_ARGUMENT, "raw_frequencies", "4 rows"),
    ],
    ids=["budget", "task-type", "sum", "nan", "base", "method", "allocation", "raw-shape"],
)
async def test_bad_requests_are_refused_with_the_field_named(merger, stub, fields, code, field, words):
    failure = await refusal(build(stub, **{"budget_bytes": budget_of(merger, 12), **fields}))
    assert (failure.code, failure.field) == (code, field)
    assert words in failure.message


async def test_the_smallest_budget_that_a_refusal_names_works(merger, stub):
    failure = await refusal(build(stub, mix={"left": 1.0}, budget_bytes=1))
    smallest_bytes = int(failure.metadata["smallest_bytes"])
    assert (await build(stub, mix={"left": 1.0}, budget_bytes=smallest_bytes))[-1].manifest.experts_kept >= 4
    assert (await refusal(build(stub, mix={"left": 1.0}, budget_bytes=smallest_bytes - 1))).code == grpc.StatusCode.OUT_OF_RANGE


async def test_blobs_come_in_checked_chunks_from_any_offset(merger, stub):
    manifest = (await build(stub, mix={"left": 1.0}, budget_bytes=budget_of(merger, 12)))[-1].manifest
    blob = max(manifest.blobs, key=lambda blob: blob.size_bytes)
    chunks = [chunk async for chunk in stub.FetchBlob(merger_pb2.FetchBlobRequest(digest=blob.digest), timeout=10)]
    data = b"".join(chunk.data for chunk in chunks)
    assert all(zlib.crc32(chunk.data) == chunk.crc32 and len(chunk.data) <= 256 << 10 for chunk in chunks)
    assert blake3.blake3(data).hexdigest() == blob.digest
    rest = [chunk async for chunk in stub.FetchBlob(merger_pb2.FetchBlobRequest(digest=blob.digest, offset=1000), timeout=10)]
    assert b"".join(chunk.data for chunk in rest) == data[1000:]


async def test_unknown_versions_and_blobs_are_not_found(stub):
    for version in ("0123456789abcdef", "../../etc/passwd", ""):
        failure = await refusal(stub.GetManifest(merger_pb2.GetManifestRequest(version=version), timeout=5))
        assert failure.code == grpc.StatusCode.NOT_FOUND
    for digest in ("a" * 64, "../manifests/x", ""):
        failure = await refusal(_all(stub.FetchBlob(merger_pb2.FetchBlobRequest(digest=digest), timeout=5)))
        assert failure.code == grpc.StatusCode.NOT_FOUND


async def _all(call):
    return [response async for response in call]


async def test_profiles_tell_frequencies_lengths_and_words_by_task_type(merger, stub):
    profiles = await stub.GetProfiles(merger_pb2.GetProfilesRequest(), timeout=10)
    assert profiles.base_model == merger.builder.base.base_id
    assert set(profiles.profiles) == set(profiles.output_tokens) == set(profiles.prompt_words) == {"left", "right"}
    assert [sum(row.values) for row in profiles.profiles["left"].layers] == pytest.approx([1.0] * 4)
    assert not set(profiles.prompt_words["left"].counts) & set(profiles.prompt_words["right"].counts)
    failure = await refusal(stub.GetProfiles(merger_pb2.GetProfilesRequest(base_model="other"), timeout=5))
    assert failure.code == grpc.StatusCode.NOT_FOUND


async def test_a_model_or_task_set_that_cannot_be_used_ends_the_start_with_the_cure(shared, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        async with Merger(merger_settings(shared, model=str(tmp_path / "none")), SystemClock()):
            pass
    with pytest.raises(TasksError, match="does not exist"):
        async with Merger(merger_settings(shared, tasks=str(tmp_path / "none.jsonl")), SystemClock()):
            pass
