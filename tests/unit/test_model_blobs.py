"""Content-addressed blobs: whole or absent, verified, resumable, bounded; and model versions written to them and read back."""

from __future__ import annotations

import os
from dataclasses import replace

import blake3
import numpy as np
import pytest
import torch
from safetensors.torch import save

from services.model.blob_store import BlobStore
from services.model.build import Builder
from services.model.checkpoint import read_base
from services.model.errors import BlobError
from services.model.expert_store import read_experts, read_model
from services.model.manifest import ModelManifest
from services.model.tensor_files import safetensors_chunks
from tests.unit.pico import pico_tasks, write_pico_checkpoint
from tests.unit.serving_builders import copied

PROMPTS = [[5, 9, 11, 1], [7, 1], [20, 21, 22, 23, 1]]
TARGETS = [[8, 9, 1], [10, 1], [1]]


@pytest.fixture
def store(tmp_path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 1 << 20)


@pytest.fixture(scope="module")
def builder(tmp_path_factory) -> Builder:
    base = read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")))
    return Builder(base, pico_tasks(), tmp_path_factory.mktemp("cache"))


def tensors(seed: int = 0, size: int = 16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"wi": torch.randn(size, 4, generator=generator), "wo": torch.randn(4, size, generator=generator)}


def put_raw(store: BlobStore, data: bytes) -> str:
    digest = blake3.blake3(data).hexdigest()
    (store.directory / digest).write_bytes(data)
    return digest


def logits(model):
    with torch.no_grad():
        return model.teacher_forced(PROMPTS, TARGETS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_blobs_are_what_safetensors_writes(dtype, shape):
    tensors = {name: torch.ones(shape, dtype=dtype) for name in ("wo", "a.ä", "wi", 'file:x"y')}
    tensors["turned"] = torch.arange(6).to(dtype).view(2, 3).T
    assert b"".join(safetensors_chunks(tensors)) == save({name: tensor.contiguous() for name, tensor in tensors.items()})
    mixed = {**tensors, "other": torch.ones(2, dtype=torch.float64)}
    assert b"".join(safetensors_chunks(mixed)) == save({name: tensor.contiguous() for name, tensor in mixed.items()})


def test_equal_tensors_are_one_blob(store):
    first, second = store.put(tensors()), store.put(dict(reversed(tensors().items())))
    assert first == second
    assert first[0] != store.put(tensors(1))[0]
    assert all(torch.equal(store.read(first[0])[name], tensor) for name, tensor in tensors().items())


def test_a_flipped_bit_is_found_and_the_blob_dropped(store):
    digest, _ = store.put(tensors())
    path = store.directory / digest
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(BlobError, match="digest"):
        store.read(digest)
    assert store.missing([digest]) == [digest]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (save({"wi": torch.tensor([1.0, float("nan")])}), "NaN"),
        (save({"wi": torch.tensor([1.0, float("-inf")]).bfloat16()}), "infinity"),
        (save({"wi": torch.cat([torch.ones(5000), torch.tensor([float("nan")]), torch.ones(77)]).bfloat16()}), "NaN"),
        (b"\x80\x04\x95pickle", "not safetensors|truncated"),
        (b"", "too short"),
        (save(tensors())[:-4], "not safetensors"),
        (save(tensors()) + b"more", "not safetensors"),
        ((2 << 20).to_bytes(8, "little") + bytes(2 << 20), "more than"),
    ],
)
def test_bytes_that_are_not_finite_safetensors_are_refused_under_their_right_digest(store, data, problem):
    with pytest.raises(BlobError, match=problem):
        store.read(put_raw(store, data))


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a" * 63, "A" * 64, "a" * 64 + "/..", "a" * 64 + "\n"])
def test_names_are_digests_and_nothing_else(store, name):
    for act in (store.read, store.has, store.staged_bytes, lambda digest: store.append(digest, 0, b"x")):
        with pytest.raises(BlobError, match="64 hexadecimal digits"):
            act(name)


def test_an_absent_blob_says_so(store):
    with pytest.raises(BlobError, match="not in the store"):
        store.read("0" * 64)
    with pytest.raises(BlobError, match="not in the store"):
        store.read_chunk("0" * 64, 0, 10)


def test_a_download_resumes_and_becomes_a_blob_only_when_it_is_right(store, tmp_path):
    digest, size = store.put(tensors())
    other = BlobStore(tmp_path / "other", 1 << 20)
    other.append(digest, 0, store.read_chunk(digest, 0, 100))
    assert not other.has(digest)
    with pytest.raises(BlobError, match="expected 100"):
        other.append(digest, 50, b"overlap")
    other.append(digest, 100, store.read_chunk(digest, 100, size))
    other.commit(digest, size)
    assert torch.equal(other.read(digest)["wi"], tensors()["wi"])
    other.append("1" * 64, 0, b"wrong")
    with pytest.raises(BlobError, match="digest"):
        other.commit("1" * 64, 5)
    with pytest.raises(BlobError, match="nothing was fetched"):
        other.commit("1" * 64, 5)
    other.append("2" * 64, 0, b"part")
    other.discard_staged()
    assert [path.name for path in other.directory.iterdir()] == [digest]


def test_the_limit_drops_what_was_used_longest_ago_and_spares_live_versions(tmp_path):
    store = BlobStore(tmp_path, 1)
    digests = [store.put(tensors(seed))[0] for seed in range(4)]
    for age, digest in enumerate(digests):
        os.utime(tmp_path / digest, (age, age))
    store.limit_bytes = 2 * store.size_bytes(digests[0])
    store.pin("live", [digests[0]])
    store.read(digests[1])
    assert store.evict() == [digests[2], digests[3]]
    store.unpin("live")
    store.limit_bytes = 0
    assert set(store.evict()) == {digests[0], digests[1]}


def test_a_version_is_rebuilt_from_blobs_alone_bit_for_bit(builder, tmp_path):
    manifest = builder.build({"left": 1.0}, builder.base.full_bytes // 2)
    served = read_model(copied(builder.store, tmp_path, manifest.digests), manifest)
    assert served.version == manifest.version
    assert torch.equal(logits(served.model), logits(builder.model(manifest).model))
    assert served.tokenizer.encode("w3 w4") == builder.base.tokenizer.encode("w3 w4")
    assert served.model.shape == builder.base.model.shape


def test_an_update_reads_only_the_groups_that_changed(builder, tmp_path):
    first = builder.build({"left": 1.0}, builder.base.full_bytes * 3 // 4)
    second = builder.build({"right": 1.0}, builder.base.full_bytes * 3 // 4)
    changed = second.digests - first.digests
    assert 0 < len(changed) < len(second.digests)
    present = read_model(copied(builder.store, tmp_path, first.digests), first).model
    store = copied(builder.store, tmp_path, changed)
    for digest in first.digests - {first.rest.digest}:
        (tmp_path / digest).unlink()
    updated = present.with_experts(read_experts(store, second, present, first))
    assert torch.equal(logits(updated), logits(builder.model(second).model))
    same = read_experts(store, first, present, first)
    assert all(new is old for new, old in zip(same, present.experts, strict=True))


def test_blobs_that_do_not_make_the_model_are_refused(builder, tmp_path):
    manifest = builder.build({"left": 1.0}, builder.base.full_bytes // 2)
    store = copied(builder.store, tmp_path, manifest.digests)

    def swapped(index, **changes):
        blobs = list(manifest.blobs)
        blobs[index] = replace(blobs[index], **changes)
        return replace(manifest, blobs=tuple(blobs))

    half, _ = store.put({name: weight.half() for name, weight in store.read(manifest.blobs[0].digest).items()})
    with pytest.raises(BlobError, match="float16"):
        read_model(store, swapped(0, digest=half))
    small, _ = store.put(tensors())
    with pytest.raises(BlobError, match="shapes"):
        read_model(store, swapped(0, digest=small))
    empty, _ = store.put({})
    with pytest.raises(BlobError, match="no tensor"):
        read_model(store, swapped(0, digest=empty))
    with pytest.raises(BlobError, match="groups that its blobs do not hold"):
        read_model(store, replace(manifest, blobs=manifest.blobs[1:]))
    rest = store.read(manifest.rest.digest)
    rest.pop("shared")
    lacking, _ = store.put(rest)
    with pytest.raises(BlobError, match=r"shared.*missing"):
        read_model(store, swapped(-1, digest=lacking))
    with pytest.raises(BlobError, match="not in the store"):
        read_model(store, swapped(0, digest="0" * 64))


def test_a_manifest_survives_its_written_form(builder):
    manifest = builder.build({"left": 0.25, "right": 0.75}, builder.base.full_bytes // 2)
    again = ModelManifest.from_proto(manifest.to_proto())
    assert again.to_proto() == manifest.to_proto()
    assert again.blobs == manifest.blobs
    assert again.mix == manifest.mix
    np.testing.assert_array_equal(again.frequencies, manifest.frequencies)
    np.testing.assert_array_equal(again.profiles["left"].counts_per_task, manifest.profiles["left"].counts_per_task)
    assert again.durations_s == pytest.approx(dict(manifest.durations_s), abs=1e-8)
