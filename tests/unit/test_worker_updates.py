"""Swapping versions under load, and every way in which an update may not hurt: bad blobs, no merger, no room, pins, restarts."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc
import pytest

from moedge.v1 import inference_pb2, worker_pb2
from services.runtime.status import failure_of
from services.runtime.store import EdgeRegistry
from tests.unit.serving_builders import budget_of, built, eventually, make_edge, running_merger, running_site


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


async def load(site, version):
    return (await site.control.LoadVersion(worker_pb2.LoadVersionRequest(version=version), timeout=30)).report


async def refusal(call):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return failure_of(caught.value)


class Load:
    """Tasks sent one after the other by several users until told to stop."""

    def __init__(self, site, num_users=4):
        self.summaries = []
        self._site = site
        self._num_users = num_users
        self._stop = False

    async def _user(self, number):
        while not self._stop:
            self.summaries.append(await self._site.answer(f"w{number} w{len(self.summaries) % 60}", max_tokens=5))

    async def __aenter__(self):
        self._users = [asyncio.create_task(self._user(number)) for number in range(self._num_users)]
        await eventually(self._some)
        return self

    async def _some(self):
        return len(self.summaries) > 3

    async def __aexit__(self, *_):
        seen = len(self.summaries)

        async def more():
            return len(self.summaries) > seen + 8

        await eventually(more)
        self._stop = True
        await asyncio.gather(*self._users)


async def test_swapping_under_load_fails_no_task_and_ships_only_what_changed(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            first = site.worker.version
            async with Load(site) as sent:
                report = await load(site, other.version)
            served = Counter(summary.version for summary in sent.summaries)
            assert set(served) == {first, other.version}
            assert site.worker.version == other.version
            assert report.ok
            assert (report.from_version, report.to_version) == (first, other.version)
            assert 0 < report.bytes_fetched < report.bytes_full
            assert report.downtime.ToNanoseconds() == 0
            assert report.stall.ToNanoseconds() < 0.5e9
            assert report.peak_model_bytes > other.model_bytes
            entry = (await EdgeRegistry(site.redis).all())["small"]
            assert (entry.version, entry.previous_version, entry.updates) == (other.version, first, 1)


async def test_every_answer_is_wholly_of_the_version_it_names(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        prompt = "w40 w41 w42"
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            texts = {site.worker.version: (await site.answer(prompt, max_tokens=40)).text}
            in_flight = [asyncio.create_task(site.answer(prompt, max_tokens=40)) for _ in range(6)]
            await load(site, other.version)
            texts[other.version] = (await site.answer(prompt, max_tokens=40)).text
            for summary in await asyncio.gather(*in_flight):
                assert summary.text == texts[summary.version]


async def test_where_memory_holds_one_version_the_edge_drains_first_and_counts_the_downtime(shared, tmp_path):
    async with running_merger(shared) as merger:
        reserve = 1000
        budget = budget_of(merger, 12)
        edge = make_edge(budget + reserve)
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, edge, swap_reserve_bytes=reserve) as site:
            async with Load(site) as sent:
                report = await load(site, other.version)
            assert report.downtime.ToNanoseconds() > 0
            assert report.peak_model_bytes <= edge.memory_bytes
            assert {summary.version for summary in sent.summaries} == {report.from_version, other.version}


@pytest.mark.parametrize("reserve", [None, 1000], ids=["beside", "drained"])
async def test_a_corrupted_blob_leaves_the_old_model_serving(shared, tmp_path, reserve):
    directory = tmp_path / "own"
    async with running_merger(directory) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        edge = make_edge(budget + (reserve or 0))
        async with running_site(tmp_path, merger.address, edge, swap_reserve_bytes=reserve) as site:
            first = site.worker.version
            worker_blobs = tmp_path / "worker" / "small" / "blobs"
            lacking = sorted(blob.digest for blob in other.blobs if not (worker_blobs / blob.digest).exists())
            path = merger.builder.store.directory / lacking[-1]
            good = path.read_bytes()
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
            async with Load(site) as sent:
                failure = await refusal(load(site, other.version))
            assert failure.code == grpc.StatusCode.DATA_LOSS
            assert f"{first} goes on serving" in failure.message
            assert {summary.version for summary in sent.summaries} == {first}
            assert not (worker_blobs / lacking[-1]).exists()
            path.write_bytes(good)
            assert (await load(site, other.version)).ok


@pytest.mark.parametrize("reserve", [None, 1000], ids=["beside", "drained"])
async def test_a_version_that_answers_otherwise_than_its_manifest_is_refused(shared, tmp_path, reserve):
    async with running_merger(tmp_path / "own") as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        manifest_path = next((merger.builder.cache_dir / "manifests").glob(f"{other.version}*"))
        other.check_prompts[0].text = "w59 " + other.check_prompts[0].text
        manifest_path.write_bytes(other.SerializeToString())
        edge = make_edge(budget + (reserve or 0))
        async with running_site(tmp_path, merger.address, edge, swap_reserve_bytes=reserve) as site:
            first = site.worker.version
            failure = await refusal(load(site, other.version))
            assert failure.code == grpc.StatusCode.DATA_LOSS
            assert "check prompt" in failure.message
            assert (await site.answer()).version == first


async def test_unknown_and_unfit_versions_and_a_second_update_are_refused(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        large = await built(merger, {"left": 1.0}, budget_of(merger, 20))
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            assert (await refusal(load(site, "0123456789abcdef"))).code == grpc.StatusCode.NOT_FOUND
            assert (await refusal(load(site, large.version))).reason == "TOO_LARGE"
            assert (await refusal(load(site, ""))).field == "version"
            both = await asyncio.gather(load(site, other.version), load(site, other.version), return_exceptions=True)
            (refused,) = [failure_of(result) for result in both if isinstance(result, grpc.aio.AioRpcError)]
            assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UPDATE_RUNNING")
            assert (await load(site, other.version)).bytes_fetched == 0


async def test_a_pinned_edge_keeps_its_version_and_rolling_back_pins_the_one_before(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            first = site.worker.version
            assert (await refusal(site.control.RollBack(worker_pb2.RollBackRequest(), timeout=5))).reason == "NO_PREVIOUS"
            await site.control.SetPinned(worker_pb2.SetPinnedRequest(pinned=True), timeout=5)
            assert (await refusal(load(site, other.version))).reason == "PINNED"
            await site.control.SetPinned(worker_pb2.SetPinnedRequest(pinned=False), timeout=5)
            await load(site, other.version)
            answer = await site.control.RollBack(worker_pb2.RollBackRequest(), timeout=20)
            assert answer.version == first == (await site.answer()).version
            assert (await refusal(load(site, other.version))).reason == "PINNED"


async def test_a_restart_serves_the_last_committed_version_without_the_merger(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            first = site.worker.version
            await load(site, other.version)
            text = (await site.answer()).text
        address = merger.address
    junk = tmp_path / "worker" / "small" / "blobs" / ("0" * 64 + ".part")
    junk.write_bytes(b"unfinished")
    async with running_site(tmp_path, address, make_edge(budget)) as site:
        assert not junk.exists()
        assert site.worker.version == other.version
        assert (await site.answer()).text == text
        assert (await site.control.RollBack(worker_pb2.RollBackRequest(), timeout=20)).version == first


async def test_a_restart_with_a_damaged_blob_fetches_it_again(shared, tmp_path):
    async with running_merger(shared) as merger:
        edge = make_edge(budget_of(merger, 12))
        async with running_site(tmp_path, merger.address, edge) as site:
            version = site.worker.version
        blobs = sorted((tmp_path / "worker" / "small" / "blobs").iterdir())
        blobs[0].write_bytes(blobs[0].read_bytes()[:-4])
        async with running_site(tmp_path, merger.address, edge) as site:
            assert site.worker.version == version
            assert (await site.answer()).version == version


async def test_a_worker_waits_for_its_merger_and_says_meanwhile_that_it_is_starting(shared, tmp_path):
    async with running_merger(shared) as merger:
        port, edge = int(merger.address.rpartition(":")[2]), make_edge(budget_of(merger, 12))
    entering = running_site(tmp_path, f"127.0.0.1:{port}", edge)
    starting = asyncio.create_task(entering.__aenter__())
    await asyncio.sleep(0.5)  # noqa: TID251  long enough to have failed
    assert not starting.done()
    async with running_merger(shared, port=port):
        site = await asyncio.wait_for(starting, 20)
        assert (await site.answer()).version == site.worker.version
        await entering.__aexit__(None, None, None)


async def test_a_budget_that_holds_no_model_ends_the_start_with_the_smallest_that_does(shared, tmp_path):
    async with running_merger(shared) as merger:
        with pytest.raises(Exception, match=r"smallest that works is \d+"):
            async with running_site(tmp_path, merger.address, make_edge(1000)):
                pass


async def test_a_resume_for_the_version_before_is_refused_once_it_is_gone(shared, tmp_path):
    async with running_merger(shared) as merger:
        budget = budget_of(merger, 12)
        other = await built(merger, {"right": 1.0}, budget)
        async with running_site(tmp_path, merger.address, make_edge(budget)) as site:
            first = site.worker.version
            await load(site, other.version)
            dispatch = inference_pb2.Dispatch(task_id="t", attempt=2, emitted_token_ids=[4], required_version=first)
            failure = await refusal(site.answer(dispatch=dispatch))
            assert (failure.code, failure.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VERSION_MISMATCH")
