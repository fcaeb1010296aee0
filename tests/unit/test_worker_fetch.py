"""Fetching blobs from a merger that loses connections, damages chunks, sends too much or is not there."""

from __future__ import annotations

import zlib
from contextlib import asynccontextmanager

import grpc
import pytest
import torch

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.merger.servicer import MergerServicer
from services.model.blob_store import BlobStore
from services.model.threads import single_thread
from services.runtime.clock import SystemClock
from services.runtime.net import bind, channel, server
from services.runtime.status import RpcFailure
from services.worker.committed import parse_manifest
from services.worker.fetch import PIECE_BYTES, Fetcher

CHUNK = 1000


class FaultyMerger(MergerServicer):
    """Serves one blob; `faults` is what happens in the first calls, one each."""

    def __init__(self, data, faults=()):
        super().__init__(ready=self._nothing)
        self.data = data
        self.faults = list(faults)
        self.offsets = []

    def _nothing(self):
        raise NotImplementedError

    async def FetchBlob(self, request, context):
        self.offsets.append(request.offset)
        fault = self.faults.pop(0) if self.faults else None
        for offset in range(request.offset, len(self.data), CHUNK):
            data = self.data[offset : offset + CHUNK]
            if fault == "break" and offset >= 2 * CHUNK:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            crc32 = zlib.crc32(data) ^ (fault == "crc")
            if fault == "flip":
                data = bytes([data[0] ^ 1]) + data[1:]
                crc32 = zlib.crc32(data)
            yield merger_pb2.FetchBlobResponse(offset=offset, data=data, crc32=crc32)
        if fault == "more":
            yield merger_pb2.FetchBlobResponse(offset=len(self.data), data=b"more", crc32=zlib.crc32(b"more"))


def one_blob_manifest(digest, size_bytes):
    written = merger_pb2.Manifest(version="v", base_model="b", dtype="float32", config_json="{}")
    written.blobs.add(digest=digest, size_bytes=size_bytes, kind="rest")
    written.layers.add(index_map=[0], frequencies=[1.0])
    return parse_manifest(written)


@asynccontextmanager
async def scene(tmp_path, *faults, piece_bytes=PIECE_BYTES):
    source = BlobStore(tmp_path / "source", 1 << 30)
    digest, size_bytes = source.put({"w": torch.arange(1500, dtype=torch.float32)})
    merger = FaultyMerger(source.read_chunk(digest, 0, size_bytes), faults)
    grpc_server = server()
    merger_pb2_grpc.add_MergerServiceServicer_to_server(merger, grpc_server)
    address = bind(grpc_server, "127.0.0.1", 0)
    await grpc_server.start()
    store = BlobStore(tmp_path / "store", 1 << 30)
    thread = single_thread("disk")
    try:
        async with channel(address) as to_merger:
            fetcher = Fetcher(store, thread, SystemClock(), piece_bytes=piece_bytes)
            yield merger, store, lambda *pace: fetcher.blobs(to_merger, one_blob_manifest(digest, size_bytes), *pace), digest
    finally:
        await grpc_server.stop(None)
        thread.shutdown()


async def test_a_blob_comes_whole_and_is_not_fetched_twice(tmp_path):
    async with scene(tmp_path) as (merger, store, fetch, digest):
        assert await fetch() == len(merger.data)
        assert store.read(digest)["w"].tolist() == list(range(1500))
        assert await fetch() == 0
        assert merger.offsets == [0]


@pytest.mark.parametrize("piece_bytes", [1, CHUNK, 2 * CHUNK + 1, 1 << 20])
async def test_a_blob_is_the_same_whatever_is_written_at_once(tmp_path, piece_bytes):
    async with scene(tmp_path, "break", piece_bytes=piece_bytes) as (merger, store, fetch, digest):
        assert await fetch() == len(merger.data)
        assert merger.offsets == [0, 2 * CHUNK]
        assert store.read(digest)["w"].tolist() == list(range(1500))


async def test_an_update_comes_no_faster_than_it_may(tmp_path):
    async with scene(tmp_path, piece_bytes=CHUNK) as (merger, _, fetch, _):
        began_at_s = SystemClock().now_s()
        assert await fetch(2.0 * len(merger.data)) == len(merger.data)
        assert SystemClock().now_s() - began_at_s >= 0.5


async def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path):
    async with scene(tmp_path, "break") as (merger, store, fetch, digest):
        assert await fetch() == len(merger.data)
        assert merger.offsets == [0, 2 * CHUNK]
        assert store.has(digest)


@pytest.mark.parametrize("fault", ["crc", "flip", "more"])
async def test_a_damaged_transfer_is_tried_again(tmp_path, fault):
    async with scene(tmp_path, fault) as (merger, store, fetch, digest):
        await fetch()
        assert store.has(digest)
        assert len(merger.offsets) == 2


async def test_after_three_damaged_transfers_it_is_data_loss_and_nothing_is_kept(tmp_path):
    async with scene(tmp_path, "flip", "flip", "flip") as (merger, store, fetch, digest):
        with pytest.raises(RpcFailure) as caught:
            await fetch()
        assert caught.value.code == grpc.StatusCode.DATA_LOSS
        assert len(merger.offsets) == 3
        assert not store.has(digest)
        assert store.staged_bytes(digest) == 0


async def test_a_merger_that_keeps_breaking_off_is_unavailable_after_three_tries(tmp_path):
    async with scene(tmp_path, *["break"] * 3) as (merger, _store, fetch, _digest):
        with pytest.raises(RpcFailure) as caught:
            await fetch()
        assert caught.value.code == grpc.StatusCode.UNAVAILABLE
        assert merger.offsets == [0, 2 * CHUNK, 2 * CHUNK]
