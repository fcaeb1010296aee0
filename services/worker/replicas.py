"""Which directory of the cache is this process's own, and with replicas also which of the edges that share one description it is.

A lock on `<cache_dir>/<name>-<number>/lock` is the number: the kernel gives it back when the process ends, however it ends, and processes
in different containers see it through a shared volume of one host. So a worker that comes again finds the versions that one before it left.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.runtime.errors import SettingsError

logger = logging.getLogger(__name__)

LOCK = "lock"


@contextmanager
def own_name(cache_dir: Path, name: str, *, replicas: bool, limit_bytes: int) -> Iterator[str]:
    """The edge's name. While inside, its directory under `cache_dir` is there and writable, and with replicas nobody else's."""
    cache_dir = cache_dir.expanduser()
    try:
        _make_writable(cache_dir)
        chosen, lock = _first_free(cache_dir, name, limit_bytes) if replicas else (name, None)
        _make_writable(cache_dir / chosen)
    except OSError as error:
        raise SettingsError(
            f"MOEDGE_WORKER_CACHE_DIR: {cache_dir} cannot be written ({error.strerror or error}); "
            f"give a directory or a volume that uid {os.getuid()} may write"
        ) from error
    try:
        yield chosen
    finally:
        if lock is not None:
            os.utime(lock)
            os.close(lock)


def number_of(chosen: str, name: str) -> int:
    """Which replica of `name` that is, from 0."""
    return int(chosen.removeprefix(f"{name}-")) - 1 if chosen != name else 0


def _first_free(cache_dir: Path, name: str, limit_bytes: int) -> tuple[str, int]:
    """One starting worker at a time, so that none takes another's look at a directory for its use."""
    turn = os.open(cache_dir / f".{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        number = 1
        while (lock := _taken(cache_dir / f"{name}-{number}")) is None:
            number += 1
        os.utime(lock)
        try:
            empty_unused(cache_dir, name, limit_bytes)
        except BaseException:
            os.close(lock)
            raise
        return f"{name}-{number}", lock
    finally:
        os.close(turn)


def empty_unused(cache_dir: Path, name: str, limit_bytes: int) -> list[str]:
    """Empty replicas' directories that no process holds, those left longest ago first, until the rest weighs at most `limit_bytes`.

    The lock files stay: one that was removed could be held by a process that nobody sees.
    """
    numbered = re.compile(re.escape(name) + r"-[1-9]\d*")
    unused = []
    for directory in cache_dir.iterdir():
        if numbered.fullmatch(directory.name) and (lock := _taken(directory)) is not None:
            unused.append((os.fstat(lock).st_mtime, directory, lock))
    emptied = []
    try:
        total = sum(_size_bytes(directory) for _, directory, _ in unused)
        for _, directory, _ in sorted(unused, key=lambda found: found[0]):
            if total <= limit_bytes:
                break
            total -= _size_bytes(directory)
            _empty(directory)
            emptied.append(directory.name)
            logger.info("%s: emptied, no worker uses it", directory)
    finally:
        for _, _, lock in unused:
            os.close(lock)
    return sorted(emptied)


def _taken(directory: Path) -> int | None:
    """The locked descriptor, or None while another process has it."""
    _make_writable(directory)
    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _make_writable(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionError(13, os.strerror(13))


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        if path.name == LOCK:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _size_bytes(directory: Path) -> int:
    return sum(path.lstat().st_size for path in directory.rglob("*") if path.is_file())
