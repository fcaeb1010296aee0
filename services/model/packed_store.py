"""Packed experts of a version as blobs, and back: a blob each, one tensor of its record's bytes, named by what those bytes mean.

Content-addressed, so an expert that keeps its form from one version to the next is not shipped again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from services.model.blob_store import BlobStore
from services.model.errors import BlobError
from services.model.families.base import ExpertStack
from services.model.families.packed_weights import PackedWeights
from services.model.manifest import PACKED, BlobRef, ModelManifest
from services.model.records import RecordLayout

Held = Mapping[str, tuple[ExpertStack, int]]  # by digest: the stack that has an expert in memory, and its row


def write_packed(store: BlobStore, layer: int, weights: PackedWeights) -> list[BlobRef]:
    refs = []
    for row in range(weights.num_kept):
        layout, record = weights.at(row)
        digest, size_bytes = store.put({layout.name: record})
        refs.append(BlobRef(digest, size_bytes, PACKED, layer, row))
    return refs


def read_packed(store: BlobStore, manifest: ModelManifest, layer: int, device: torch.device, held: Held) -> ExpertStack:
    """One layer. `BlobError` where a blob is absent, damaged, or not one expert, or where the index map leads to none of them."""
    blobs, index_map = manifest.group_blobs(layer), manifest.index_maps[layer]
    named = set(index_map) | {len(blobs)}  # one past the last: experts that nothing answers
    if [blob.group for blob in blobs] != list(range(len(blobs))) or named != set(range(len(blobs) + 1)):
        raise BlobError(f"version {manifest.version}: layer {layer} maps experts to groups that its blobs do not hold")
    if any(blob.kind != PACKED for blob in blobs):
        raise BlobError(f"version {manifest.version}: layer {layer} has packed experts beside others")
    by_layout: dict[RecordLayout, list[Tensor]] = {}
    last: RecordLayout | None = None
    for blob in blobs:
        layout, record = _record(store, blob, held)
        if last is not None and layout < last:
            raise BlobError(f"version {manifest.version}: packed experts of layer {layer} are not in the order of their forms")
        by_layout.setdefault(layout, []).append(record.to(device))
        last = layout
    weights = PackedWeights({layout: torch.stack(records) for layout, records in by_layout.items()}, device)
    return ExpertStack(weights, torch.tensor(index_map, dtype=torch.int64, device=device))


def _record(store: BlobStore, blob: BlobRef, held: Held) -> tuple[RecordLayout, Tensor]:
    if blob.digest in held:
        stack, row = held[blob.digest]
        if isinstance(stack.weights, PackedWeights) and not stack.weights.is_laid_out(row):
            return stack.weights.at(row)
    tensors = store.read(blob.digest)
    if len(tensors) != 1:
        raise BlobError(f"blob {blob.digest}: holds {len(tensors)} tensors, a packed expert is one")
    [(name, record)] = tensors.items()
    try:
        layout = RecordLayout.parse(name)
    except ValueError as error:
        raise BlobError(f"blob {blob.digest}: {error}") from error
    if (problem := layout.problem(record)) is not None:
        raise BlobError(f"blob {blob.digest}: {problem}")
    return layout, record
