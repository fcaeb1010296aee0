"""A model version as blobs, and back: one blob a group of experts, one for the rest. Only groups that changed are read again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.model.blob_store import BlobStore
from services.model.device import put
from services.model.errors import BlobError, ModelError
from services.model.families import family_of
from services.model.families.base import ExpertStack, MoeModel
from services.model.families.blocked import BlockedStack, blocked, can_block, row_of
from services.model.families.packed_weights import PackedWeights
from services.model.manifest import GROUP, PACKED, REST, BlobRef, ModelManifest
from services.model.memory import dtype_of
from services.model.packed_store import read_packed, write_packed
from services.model.tokenizer import Tokenizer

__all__ = ["BlobStore", "ServedModel", "read_experts", "read_model", "write_experts", "write_rest"]

_FILE = "file:"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A version ready to answer."""

    model: MoeModel
    tokenizer: Tokenizer
    version: str


def write_experts(store: BlobStore, experts: Sequence[ExpertStack]) -> list[BlobRef]:
    """One blob a kept expert. Equal experts share a blob, whatever version or layer they belong to."""
    refs = []
    for layer, stack in enumerate(experts):
        if isinstance(stack.weights, PackedWeights):
            refs += write_packed(store, layer, stack.weights)
            continue
        for group in range(stack.num_kept):
            digest, size_bytes = store.put({name: weight[group] for name, weight in stack.weights.items()})
            refs.append(BlobRef(digest, size_bytes, GROUP, layer, group))
    return refs


def write_rest(store: BlobStore, model: MoeModel, config_json: str, tokenizer: Tokenizer) -> BlobRef:
    """Everything but the experts, with what is needed to build the model again and to read text."""
    experts = {id(weight) for stack in model.experts for weight in stack.weights.values()}
    tensors = {name: tensor for name, tensor in model.parameters().items() if id(tensor) not in experts}
    files = {"config.json": config_json.encode(), **tokenizer.files}
    tensors |= {_FILE + name: torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()) for name, data in files.items()}
    digest, size_bytes = store.put(tensors)
    return BlobRef(digest, size_bytes, REST)


def read_model(
    store: BlobStore,
    manifest: ModelManifest,
    device: torch.device | str = "cpu",
    max_prompt_tokens: int | None = None,
    *,
    to_serve: bool = False,
) -> ServedModel:
    """The whole model of a manifest from the store alone. `BlobError` where a blob is absent, damaged or not of this model.

    One read `to_serve` has its matrices laid out for products: it answers the same, and is neither trained, merged nor written again.
    """
    tensors = store.read(manifest.rest.digest)
    files = {name.removeprefix(_FILE): bytes(tensors.pop(name).numpy()) for name in list(tensors) if name.startswith(_FILE)}
    _check_dtype(tensors, manifest, manifest.rest.digest)
    experts = [_read_stack(store, manifest, layer, torch.device(device), {}, to_serve) for layer in range(len(manifest.index_maps))]
    config = _config(files, manifest)
    try:
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        model = family_of(config).assemble(config, tensors, experts)
        tokenizer = Tokenizer.from_files(files, f"version {manifest.version}", max_prompt_tokens)
    except ModelError as error:
        raise BlobError(f"version {manifest.version}: its blobs do not make a model ({error})") from error
    return ServedModel(model.blocked() if to_serve else model, tokenizer, manifest.version)


def read_experts(store: BlobStore, manifest: ModelManifest, present: MoeModel, present_manifest: ModelManifest) -> list[ExpertStack]:
    """The experts of `manifest` for a model that serves `present_manifest`: equal layers are shared, equal groups copied in memory
    where they are plain, and shared too where they are laid out for products; packed experts that are laid out are read again.

    Use with `present.with_experts`. The rest of both versions must be the same blob, else `BlobError`: read the whole model then.
    """
    if manifest.rest.digest != present_manifest.rest.digest:
        raise BlobError(f"version {manifest.version}: not of the model that serves {present_manifest.version}; read it whole")
    held = {
        blob.digest: (present.experts[layer], blob.group)
        for layer in range(len(present_manifest.index_maps))
        for blob in present_manifest.group_blobs(layer)
    }
    is_to_serve = any(stack.is_blocked for stack in present.experts)
    stacks = []
    for layer, index_map in enumerate(manifest.index_maps):
        digests = [blob.digest for blob in manifest.group_blobs(layer)]
        now = [blob.digest for blob in present_manifest.group_blobs(layer)]
        if digests == now and index_map == present_manifest.index_maps[layer]:
            stacks.append(present.experts[layer])
            continue
        stacks.append(_read_stack(store, manifest, layer, present.device, held, is_to_serve))
    return stacks


def _read_stack(
    store: BlobStore,
    manifest: ModelManifest,
    layer: int,
    device: torch.device,
    held: Mapping[str, tuple[ExpertStack, int]],
    to_serve: bool,
) -> ExpertStack:
    blobs = manifest.group_blobs(layer)
    index_map = manifest.index_maps[layer]
    if not blobs or any(blob.kind == PACKED for blob in blobs):
        packed = read_packed(store, manifest, layer, device, held)
        return packed.blocked() if to_serve else packed
    if [blob.group for blob in blobs] != list(range(len(blobs))) or set(index_map) != set(range(len(blobs))):
        raise BlobError(f"version {manifest.version}: layer {layer} maps experts to groups that its blobs do not hold")
    weights: dict[str, Tensor] = {}
    laid_out: dict[str, list[Tensor]] = {}
    shapes: dict[str, torch.Size] = {}
    for row, blob in enumerate(blobs):  # each into its place as it is read, so that no layer is ever in memory twice
        group = _read_group(store, manifest, blob, held)
        shapes = shapes or {name: group[name].shape for name in sorted(group)}
        if {name: tensor.shape for name, tensor in group.items()} != shapes:
            raise BlobError(f"blob {blob.digest}: tensors or shapes are not those of the other groups of layer {layer}")
        for name, tensor in group.items():
            if to_serve and device.type == "cpu" and (tensor.is_mkldnn or can_block(tensor)):
                laid_out.setdefault(name, []).append(blocked(tensor))
                continue
            if name not in weights:
                weights[name] = tensor.new_empty((len(blobs), *tensor.shape), device=device)
            put(weights[name][row], tensor)
    weights |= {name: BlockedStack(matrices) for name, matrices in laid_out.items()}
    weights = {name: weights[name] for name in shapes}
    return ExpertStack(weights, torch.tensor(index_map, dtype=torch.int64, device=device))


def _read_group(store: BlobStore, manifest: ModelManifest, blob: BlobRef, held: Mapping[str, tuple[ExpertStack, int]]) -> dict[str, Tensor]:
    if blob.digest in held:
        stack, row = held[blob.digest]
        return {name: row_of(weight, row) for name, weight in stack.weights.items()}
    tensors = store.read(blob.digest)
    if not tensors:
        raise BlobError(f"blob {blob.digest}: holds no tensor")
    _check_dtype(tensors, manifest, blob.digest)
    return tensors


def _check_dtype(tensors: Mapping[str, Tensor], manifest: ModelManifest, digest: str) -> None:
    expected = dtype_of(manifest.dtype)
    for name, tensor in tensors.items():
        if tensor.dtype != expected:
            raise BlobError(f"blob {digest}: tensor {name!r} is {tensor.dtype}, the manifest says {manifest.dtype}")


def _config(files: Mapping[str, bytes], manifest: ModelManifest) -> dict[str, object]:

    try:
        config = json.loads(files["config.json"])
    except (KeyError, ValueError) as error:
        raise BlobError(f"blob {manifest.rest.digest}: holds no readable config.json") from error
    if not isinstance(config, dict):
        raise BlobError(f"blob {manifest.rest.digest}: its config.json is not an object")
    return config
