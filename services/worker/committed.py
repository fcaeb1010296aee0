"""What an edge worker remembers on disk besides blobs: which version it serves, the one before, whether it is pinned, and their manifests.

Every file is written whole or not at all and carries a digest of its own bytes: a damaged one reads as absent, never as something else.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

import blake3

from moedge.v1 import merger_pb2
from services.model.errors import BlobError
from services.model.manifest import REST, ModelManifest
from services.model.tensor_files import write_atomically

logger = logging.getLogger(__name__)

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Committed:
    """The pointer: `version` is what a restart serves."""

    version: str
    previous: str | None = None
    pinned: bool = False


class VersionDirectory:
    def __init__(self, directory: Path) -> None:
        self._pointer = directory / "committed.json"
        self._manifests = directory / "manifests"
        self._manifests.mkdir(parents=True, exist_ok=True)
        for junk in [*directory.glob(".committed.json.*"), *self._manifests.glob(".*")]:
            junk.unlink(missing_ok=True)

    def read(self) -> Committed | None:
        data = read_sealed(self._pointer)
        return None if data is None else Committed(**json.loads(data))

    def write(self, committed: Committed) -> None:
        write_sealed(self._pointer, json.dumps(asdict(committed), sort_keys=True).encode())

    def save_manifest(self, manifest: ModelManifest) -> None:
        write_sealed(self._path(manifest.version), manifest.to_proto().SerializeToString(deterministic=True))

    def manifest(self, version: str) -> ModelManifest | None:
        data = read_sealed(self._path(version))
        return None if data is None else parse_manifest(merger_pb2.Manifest.FromString(data))

    def prune(self, keep: Collection[str]) -> None:
        """Drop the manifests of versions that are not kept."""
        kept = {self._path(version) for version in keep}
        for path in self._manifests.iterdir():
            if path not in kept:
                path.unlink(missing_ok=True)

    def _path(self, version: str) -> Path:
        """Version ids come from elsewhere; only their digest becomes part of a path."""
        return self._manifests / blake3.blake3(version.encode()).hexdigest(length=16)


def parse_manifest(written: merger_pb2.Manifest) -> ModelManifest:
    """A manifest that names one rest blob and fits together, else `BlobError`."""
    if sum(blob.kind == REST for blob in written.blobs) != 1 or not written.version or not written.layers:
        raise BlobError(
            f"manifest of version {written.version!r}: it must name a version, its layers and one blob with the rest of the model"
        )
    try:
        return ModelManifest.from_proto(written)
    except ValueError as error:
        raise BlobError(f"manifest of version {written.version!r}: {error}") from error


def write_sealed(path: Path, data: bytes) -> None:
    """The data after its digest."""
    write_atomically(path, blake3.blake3(data).digest() + data)


def read_sealed(path: Path) -> bytes | None:
    """What `write_sealed` wrote; None where it is missing or damaged."""
    try:
        sealed = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, data = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES:]
    if blake3.blake3(data).digest() != digest:
        logger.warning("%s is damaged and not used", path)
        return None
    return data
