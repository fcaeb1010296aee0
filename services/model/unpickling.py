"""Turns one pickled file of weights into safetensors; run as a process of its own (`python -m services.model.unpickling FROM TO KEPT`).

Only torch's restricted unpickler opens the pickle: tensors and plain containers, no other code. What goes wrong is one line on standard
error and exit code 1, so that a file that breaks the process breaks nothing else. `KEPT` is "all" or "tied-once".
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from services.model.tensor_files import raw_bytes, safetensors_header, whole_file

ALL, TIED_ONCE = "all", "tied-once"


class PickleError(Exception):
    """A file that holds something other than named tensors, or nothing that can be read."""


def convert(source: Path, target: Path, kept: str) -> list[str]:
    """Names of the tensors written, each with its own bytes. Of names that share one tensor only the shortest path is kept."""
    tensors = _named(_opened(source))
    if kept == TIED_ONCE:
        tensors = _without_ties(tensors)
    with whole_file(target) as file:
        file.write(safetensors_header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}))
        for tensor in tensors.values():
            file.write(raw_bytes(tensor))
    return list(tensors)


def _opened(source: Path) -> object:
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=_is_zip(source))
    except pickle.UnpicklingError as error:
        raise PickleError(f"holds more than tensors, and was not run: {_line(error, 'GLOBAL', 'Unsupported')}") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise PickleError(f"is not a file that torch.save wrote, or is damaged ({type(error).__name__}: {_line(error)})") from error


def _line(error: Exception, *telling: str) -> str:
    """The line of a message that says what happened, or its first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if any(word in line for word in telling)), lines[0])


def _is_zip(source: Path) -> bool:
    """Files of torch before 1.6 are not, and cannot be mapped."""
    with source.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _named(loaded: object) -> dict[str, Tensor]:
    if not isinstance(loaded, Mapping) or not loaded:
        raise PickleError(f"holds {type(loaded).__name__}, not tensors by name; give a checkpoint's weights")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise PickleError(
                f"holds {type(value).__name__} under {name!r}, not a tensor; give a checkpoint's weights, not a training state"
            )
    return dict(sorted(loaded.items()))


def _without_ties(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    first: dict[object, str] = {}
    for name in sorted(tensors, key=lambda name: (name.startswith("lm_head"), name.count("."), name)):
        tensor = tensors[name]
        view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        first.setdefault(view if tensor.numel() else name, name)
    return {name: tensors[name] for name in sorted(first.values())}


def main() -> None:
    source, target, kept = sys.argv[1:]
    try:
        print("\n".join(convert(Path(source), Path(target), kept)))
    except PickleError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
