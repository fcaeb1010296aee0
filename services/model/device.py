"""Which device a model runs on, and work on it beside what runs there.

No silent fallback: cuda that was asked for and is not there is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from services.model.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """`auto` takes cuda where there is one. `cuda:N` names one of several."""
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise DeviceError(f"device: {name!r} is unknown; use one of {', '.join(DEVICES)}")
    if kind == "auto":
        return pick_device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device: {name} was asked for but torch finds none; use --device cpu, or install a CUDA build of torch")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device: {name!r} is not a device; use cpu, cuda or cuda:N") from error
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device: {name} was asked for but there are {torch.cuda.device_count()} CUDA devices")
    if kind == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for every shape that it meets
    return device


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """What a GPU is told meanwhile runs beside what others tell it, in a stream of its own, and is done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = _stream_beside(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@cache  # one a device: memory that was given back is taken again in the stream that took it first
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def put(target: Tensor, source: Tensor) -> None:
    """Copies. Into a GPU by way of pinned memory, which it fetches by itself; `beside` waits for that."""
    if target.is_cuda and not source.is_cuda:
        target.copy_(source.pin_memory(), non_blocking=True)
    else:
        target.copy_(source)


def finished(device: torch.device) -> None:
    """Wait for what a GPU was told, so that the time it takes is not counted as that of what comes next."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
