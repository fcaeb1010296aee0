"""Content-addressed safetensors blobs in one directory: whole or absent, verified on every read, the least recently used dropped first.

A blob's name is its blake3 digest and nothing else. Unfinished downloads live beside as `<digest>.part` and are resumable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import blake3
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from services.model.errors import BlobError
from services.model.tensor_files import header_problem, non_finite, safetensors_chunks, whole_file

MAX_HEADER_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Blobs up to `limit_bytes` in all; pinned ones are never dropped, even above the limit."""

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        self.directory = directory
        self.limit_bytes = limit_bytes
        self._pins: dict[str, frozenset[str]] = {}
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, tensors: Mapping[str, Tensor]) -> tuple[str, int]:
        """Digest and size of the blob that holds `tensors`; writes it unless it is there."""
        chunks = safetensors_chunks(tensors)
        hashed = blake3.blake3()
        for chunk in chunks:
            hashed.update(chunk)
        digest = hashed.hexdigest()
        if not self.has(digest):
            with whole_file(self.directory / digest) as file:
                file.writelines(chunks)
        return digest, sum(len(chunk) for chunk in chunks)

    def read(self, digest: str) -> dict[str, Tensor]:
        """Tensors of a blob, its bytes checked against its name and every value checked to be finite."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError as error:
            raise BlobError(f"blob {digest}: not in the store; fetch it again") from error
        try:
            return checked_tensors(data, digest)
        except BlobError:
            path.unlink(missing_ok=True)
            raise

    def read_chunk(self, digest: str, offset: int, size_bytes: int) -> bytes:
        """Up to `size_bytes` of a blob's bytes from `offset`; empty at its end."""
        try:
            with self._path(digest).open("rb") as file:
                file.seek(offset)
                return file.read(size_bytes)
        except OSError as error:
            raise BlobError(f"blob {digest}: not in the store") from error

    def has(self, digest: str) -> bool:
        return self._path(digest).is_file()

    def missing(self, digests: Iterable[str]) -> list[str]:
        return sorted(digest for digest in set(digests) if not self.has(digest))

    def size_bytes(self, digest: str) -> int:
        return self._path(digest).stat().st_size if self.has(digest) else 0

    # Downloads

    def staged_bytes(self, digest: str) -> int:
        """How much of an unfinished download is here: the offset to resume from."""
        staged = self._staged(digest)
        return staged.stat().st_size if staged.is_file() else 0

    def append(self, digest: str, offset: int, data: bytes) -> None:
        """Add a chunk to an unfinished download. Chunks come in order, without gap or overlap."""
        have = self.staged_bytes(digest)
        if offset != have:
            raise BlobError(f"blob {digest}: chunk at offset {offset}, expected {have}; fetch from there")
        with self._staged(digest).open("ab") as file:
            file.write(data)

    def commit(self, digest: str, size_bytes: int) -> None:
        """Make a finished download a blob, if its bytes are what the digest says; else drop it."""
        staged = self._staged(digest)
        try:
            if staged.stat().st_size != size_bytes:
                raise BlobError(f"blob {digest}: {staged.stat().st_size} bytes came, the manifest says {size_bytes}; fetch it again")
            checked_tensors(staged.read_bytes(), digest)
            with staged.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(staged, self._path(digest))
        except FileNotFoundError as error:
            raise BlobError(f"blob {digest}: nothing was fetched") from error
        finally:
            staged.unlink(missing_ok=True)

    def discard_staged(self) -> None:
        """Drop every unfinished download (on start, after a crash)."""
        for staged in [*self.directory.glob("*.part"), *self.directory.glob(".*")]:
            staged.unlink(missing_ok=True)

    # Limit

    def pin(self, version: str, digests: Iterable[str]) -> None:
        """Keep the blobs of a live version."""
        self._pins[version] = frozenset(digests)

    def unpin(self, version: str) -> None:
        self._pins.pop(version, None)

    def evict(self) -> list[str]:
        """Drop unpinned blobs, least recently used first, until the limit holds; what was dropped."""
        kept = frozenset().union(*self._pins.values())
        files = sorted((path.stat().st_mtime_ns, path.name, path.stat().st_size) for path in self.directory.iterdir() if _is_blob(path))
        total = sum(size for _, _, size in files)
        dropped = []
        for _, digest, size in files:
            if total <= self.limit_bytes:
                break
            if digest not in kept:
                self._path(digest).unlink(missing_ok=True)
                dropped.append(digest)
                total -= size
        return dropped

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise BlobError(f"blob {digest[:80]!r}: a name is 64 hexadecimal digits and nothing else")
        return self.directory / digest

    def _staged(self, digest: str) -> Path:
        return self._path(digest).with_name(f"{digest}.part")


def checked_tensors(data: bytes, digest: str) -> dict[str, Tensor]:
    """Tensors of a blob's bytes, or a `BlobError` that says what is wrong with them."""
    if blake3.blake3(data).hexdigest() != digest:
        raise BlobError(f"blob {digest}: its bytes are not what its digest says; fetch it again")
    problem = header_problem(data[: 8 + MAX_HEADER_BYTES], len(data), MAX_HEADER_BYTES)
    if problem is not None:
        raise BlobError(f"blob {digest}: {problem}")
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise BlobError(f"blob {digest}: not safetensors ({error})") from error
    broken = non_finite(tensors)
    if broken is not None:
        raise BlobError(f"blob {digest}: tensor {broken!r} holds NaN or infinity")
    return tensors


def _is_blob(path: Path) -> bool:
    return _DIGEST.fullmatch(path.name) is not None
