"""Tensors of a checkpoint directory by name, and its JSON files: what every family reads. Safetensors only; no pickle is opened."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack
from services.model.mapped_experts import map_layer, write_layer


class TensorSource:
    """Tensors of a checkpoint directory by name, from one safetensors file or several with an index."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device, experts_dir: Path | None = None) -> None:
        self.directory = directory
        self._experts_dir = experts_dir if device.type == "cpu" else None
        self._dtype = dtype
        self._device = device
        self._file_of = _tensor_files(directory)
        self._opened: dict[Path, safe_open] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, *shape: int) -> Tensor:
        return self._read(name, shape, self._opened)

    def experts(self, layer: str, names: Mapping[str, Sequence[str]], shapes: Mapping[str, tuple[int, ...]]) -> ExpertStack:
        """The experts of a layer: `names` of the stored tensors, by our matrix name one for each expert, and the `shapes` of these."""
        num_experts = len(next(iter(names.values())))
        if self._experts_dir is None:
            weights = {matrix: torch.stack([self.read(name, *shapes[matrix]) for name in of_matrix]) for matrix, of_matrix in names.items()}
            return ExpertStack(weights, torch.arange(num_experts, device=self._device))
        path = self._experts_dir / f"{layer}.safetensors"
        mapped = map_layer(path, num_experts, shapes, self._dtype)
        if mapped is None:
            opened: dict[Path, safe_open] = {}  # its own, so that what was read of the checkpoint is not held as long as its other tensors
            write_layer(path, num_experts, shapes, self._dtype, lambda matrix, e: self._read(names[matrix][e], shapes[matrix], opened))
            mapped = map_layer(path, num_experts, shapes, self._dtype)
            assert mapped is not None
        return mapped

    def _read(self, name: str, shape: tuple[int, ...], opened: dict[Path, safe_open]) -> Tensor:
        path = self._file_of.get(name)
        if path is None:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing; save the checkpoint again with save_pretrained")
        try:
            if path not in opened:
                opened[path] = safe_open(path, "pt")
            tensor: Tensor = opened[path].get_tensor(name)  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({error}); copy the file again") from error
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{path}: tensor {name!r} has shape {tuple(tensor.shape)}, config.json asks for {shape}")
        return tensor.to(device=self._device, dtype=self._dtype)


def _tensor_files(directory: Path) -> dict[str, Path]:
    index = directory / "model.safetensors.index.json"
    single = directory / "model.safetensors"
    if single.is_file():
        paths = [single]
    elif index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise CheckpointError(f"{index}: field 'weight_map' is missing; save the checkpoint again with save_pretrained")
        paths = [directory / str(name) for name in sorted(set(weight_map.values()))]
    else:
        pickles = sorted(path.name for path in directory.glob("*.bin"))
        hint = f"; {pickles[0]} is a pickle and is never read here: make safetensors of it with moedge import-checkpoint" if pickles else ""
        raise CheckpointError(f"{directory}: model.safetensors is missing{hint}")
    files: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{directory}: {path.name} is named in {index.name} but missing")
        try:
            with safe_open(path, "pt") as opened:
                files.update(dict.fromkeys(opened.keys(), path))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a safetensors file ({error}); pickles are never read, convert or copy it again") from error
    return files


def read_json(path: Path) -> dict[str, object]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.parent}: {path.name} is missing; give a directory written by save_pretrained") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds {type(value).__name__}, not an object; copy it again")
    return value
