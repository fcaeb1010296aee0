"""Tensors of a checkpoint directory by name, and its JSON files: what every family reads. Safetensors only; no pickle is opened."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.model.errors import CheckpointError


class TensorSource:
    """Tensors of a checkpoint directory by name, from one safetensors file or several with an index."""

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        self.directory = directory
        self._dtype = dtype
        self._device = device
        self._file_of = _tensor_files(directory)
        self._opened: dict[Path, safe_open] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def read(self, name: str, *shape: int) -> Tensor:
        path = self._file_of.get(name)
        if path is None:
            raise CheckpointError(f"{self.directory}: tensor {name!r} is missing; save the checkpoint again with save_pretrained")
        try:
            if path not in self._opened:
                self._opened[path] = safe_open(path, "pt")
            tensor: Tensor = self._opened[path].get_tensor(name)  # type: ignore[no-untyped-call]
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
        hint = f"; {pickles[0]} is a pickle and is never read: convert it to safetensors" if pickles else ""
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
