"""Which device a model runs on. No silent fallback: cuda that was asked for and is not there is an error."""

from __future__ import annotations

import torch

from services.model.errors import DeviceError

DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """`auto` takes cuda where there is one. `cuda:N` names one of several."""
    kind = name.partition(":")[0]
    if kind not in DEVICES:
        raise DeviceError(f"device: {name!r} is unknown; use one of {', '.join(DEVICES)}")
    if kind == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device: {name} was asked for but torch finds none; use --device cpu, or install a CUDA build of torch")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device: {name!r} is not a device; use cpu, cuda or cuda:N") from error
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"device: {name} was asked for but there are {torch.cuda.device_count()} CUDA devices")
    return device
