"""What a worker remembers on disk: whole, or absent when a byte of it is wrong."""

from __future__ import annotations

import pytest

from moedge.v1 import merger_pb2
from services.model.errors import BlobError
from services.worker.committed import Committed, VersionDirectory, parse_manifest


def make_manifest(version="0123456789abcdef"):
    written = merger_pb2.Manifest(version=version, base_model="b", dtype="float32", config_json="{}")
    written.blobs.add(digest="a" * 64, size_bytes=1, kind="rest")
    written.layers.add(index_map=[0, 0], frequencies=[0.5, 0.5])
    return parse_manifest(written)


def test_the_pointer_and_manifests_come_back_as_written(tmp_path):
    directory = VersionDirectory(tmp_path)
    assert directory.read() is None
    directory.write(Committed("v2", "v1", True))
    directory.save_manifest(make_manifest())
    again = VersionDirectory(tmp_path)
    assert again.read() == Committed("v2", "v1", True)
    manifest = again.manifest("0123456789abcdef")
    assert manifest is not None
    assert manifest.index_maps == ((0, 0),)
    assert again.manifest("other") is None


def test_a_flipped_byte_anywhere_makes_a_file_absent(tmp_path):
    directory = VersionDirectory(tmp_path)
    directory.write(Committed("v2"))
    directory.save_manifest(make_manifest())
    for path in (tmp_path / "committed.json", next((tmp_path / "manifests").iterdir())):
        good = path.read_bytes()
        for position in range(0, len(good), 7):
            path.write_bytes(good[:position] + bytes([good[position] ^ 4]) + good[position + 1 :])
            assert directory.read() is None or path.name != "committed.json"
            assert directory.manifest("0123456789abcdef") is None or path.name == "committed.json"
        path.write_bytes(good)


def test_manifests_of_versions_that_are_not_live_are_dropped(tmp_path):
    directory = VersionDirectory(tmp_path)
    for version in ("v1", "v2", "v3"):
        directory.save_manifest(make_manifest(version))
    directory.prune({"v2", "v3"})
    assert [directory.manifest(version) is None for version in ("v1", "v2", "v3")] == [True, False, False]


def test_leftovers_of_a_crash_are_removed(tmp_path):
    VersionDirectory(tmp_path)
    junk = [tmp_path / ".committed.json.x1", tmp_path / "manifests" / ".v.x2"]
    for path in junk:
        path.write_bytes(b"half")
    VersionDirectory(tmp_path)
    assert not any(path.exists() for path in junk)


@pytest.mark.parametrize("field", ["version", "layers", "blobs"])
def test_a_manifest_that_lacks_a_part_is_refused(field):
    written = make_manifest().to_proto()
    written.ClearField(field)
    with pytest.raises(BlobError, match="manifest"):
        parse_manifest(written)
