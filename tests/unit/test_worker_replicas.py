"""Workers that share one description: each is the first free number, held by the kernel for as long as its process lives."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from services.runtime.errors import SettingsError
from services.worker.replicas import empty_unused, number_of, own_name

HOLDER = """
import sys
from pathlib import Path
from services.worker.replicas import own_name
with own_name(Path(sys.argv[1]), "small", replicas=True, limit_bytes=1000) as name:
    print(name, flush=True)
    sys.stdin.read()
"""


def taken(directory: Path, limit_bytes: int = 1000):
    return own_name(directory, "small", replicas=True, limit_bytes=limit_bytes)


@contextmanager
def holder(directory: Path):
    """Another process that holds a number: its name, and the process to kill."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def left(directory: Path, name: str, num_bytes: int, left_at_s: float) -> Path:
    """What a worker that ended at that time has left."""
    blobs = directory / name / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "blob").write_bytes(b"x" * num_bytes)
    (directory / name / "committed.json").write_bytes(b"x")
    lock = directory / name / "lock"
    lock.touch()
    os.utime(lock, (left_at_s, left_at_s))
    return directory / name


def test_each_worker_is_the_first_free_number(tmp_path):
    with ExitStack() as stack:
        names = [stack.enter_context(taken(tmp_path)) for _ in range(3)]
        assert names == ["small-1", "small-2", "small-3"]
    with taken(tmp_path) as again:
        assert again == "small-1"


def test_a_number_in_the_middle_that_became_free_is_taken_first(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(taken(tmp_path))
        with taken(tmp_path):
            stack.enter_context(taken(tmp_path))
        assert stack.enter_context(taken(tmp_path)) == "small-2"


def test_a_killed_process_gives_its_number_back(tmp_path):
    with holder(tmp_path) as (first, process), taken(tmp_path) as second:
        assert (first, second) == ("small-1", "small-2")
        process.kill()
        process.wait(10)
        with taken(tmp_path) as third:
            assert third == "small-1"


def test_workers_that_start_at_once_get_different_numbers_without_a_gap(tmp_path):
    with ExitStack() as stack:
        names = [stack.enter_context(holder(tmp_path))[0] for _ in range(4)]
    assert sorted(names) == ["small-1", "small-2", "small-3", "small-4"]


def test_what_a_number_holds_is_found_again(tmp_path):
    kept = left(tmp_path, "small-1", 10, 1.0)
    with taken(tmp_path) as name:
        assert (tmp_path / name / "committed.json").exists()
    assert (kept / "blobs" / "blob").exists()


def test_without_replicas_the_name_is_the_descriptions(tmp_path):
    with own_name(tmp_path, "small", replicas=False, limit_bytes=1) as name:
        assert name == "small"
        assert (tmp_path / "small").is_dir()


def test_unused_directories_give_way_to_the_limit_the_one_left_longest_ago_first(tmp_path):
    for name, left_at_s in (("small-3", 30.0), ("small-4", 10.0), ("small-5", 20.0)):
        left(tmp_path, name, 400, left_at_s)
    other = left(tmp_path, "smaller-6", 4000, 1.0)
    with taken(tmp_path, limit_bytes=1000):
        assert not (tmp_path / "small-4" / "blobs").exists()
        assert not (tmp_path / "small-4" / "committed.json").exists()
        assert (tmp_path / "small-3" / "blobs" / "blob").exists()
        assert (tmp_path / "small-5" / "blobs" / "blob").exists()
        assert (other / "blobs" / "blob").exists()


def test_a_directory_in_use_is_never_emptied(tmp_path):
    with holder(tmp_path) as (name, _):
        (tmp_path / name / "blob").write_bytes(b"x" * 5000)
        left(tmp_path, "small-2", 500, 1.0)
        assert empty_unused(tmp_path, "small", 100) == ["small-2"]
        assert (tmp_path / name / "blob").exists()


def test_a_cache_that_cannot_be_written_is_one_line_with_the_setting_and_the_cure(tmp_path):
    blocked = tmp_path / "file"
    blocked.touch()
    wrong = r"^MOEDGE_WORKER_CACHE_DIR: .*file.* cannot be written \(.+\); give a directory"
    for replicas in (True, False):
        with (
            pytest.raises(SettingsError, match=wrong) as caught,
            own_name(blocked / "cache", "small", replicas=replicas, limit_bytes=1),
        ):
            pass
        assert "\n" not in str(caught.value)


@contextmanager
def nobody():
    """Root may write everywhere, so it is somebody else for a while."""
    is_root = os.geteuid() == 0
    try:
        if is_root:
            os.seteuid(65534)
        yield
    finally:
        if is_root:
            os.seteuid(0)


def test_a_directory_of_somebody_else_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with nobody(), pytest.raises(SettingsError, match="Permission denied"), taken(tmp_path):
        pass


def test_a_replica_knows_its_number_even_where_the_name_has_digits_and_dashes():
    assert number_of("small-1", "small") == 0
    assert number_of("rack-7-12", "rack-7") == 11
    assert number_of("small", "small") == 0
