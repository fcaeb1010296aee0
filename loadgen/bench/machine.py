"""What this machine can do, measured in the run whose figures are held against it: memory bandwidth, matrix rate, peak memory."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from services.model.device import finished

BUFFER_BYTES = 256 << 20  # far larger than any cache
ROUNDS = 7
MATRIX_WIDTH = 2048
GPU_BUFFER_BYTES, GPU_MATRIX_WIDTH = 4 << 30, 8192
CPU = torch.device("cpu")


def bandwidth_bytes_per_s(device: torch.device = CPU) -> float:
    """Bytes a second with torch's threads, the best of some rounds: of reading a large buffer, or of copying it, whichever is more."""
    num_bytes = GPU_BUFFER_BYTES if device.type == "cuda" else BUFFER_BYTES
    source = torch.rand(num_bytes // 4, device=device)
    target = torch.zeros_like(source)
    copied = 2 * num_bytes / min(_seconds(lambda: target.copy_(source), device) for _ in range(ROUNDS))
    return max(copied, num_bytes / min(_seconds(source.sum, device) for _ in range(ROUNDS)))


def matrix_flops_per_s(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Operations a second of square products, with torch's threads; the best of some. Of random numbers: zeros take a GPU less time."""
    width = GPU_MATRIX_WIDTH if device.type == "cuda" else MATRIX_WIDTH
    left, right = (torch.randn(width, width, device=device).to(dtype) for _ in range(2))
    return 2 * width**3 / min(_seconds(lambda: left @ right, device) for _ in range(ROUNDS))


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Peak memory counts from here on, where the system lets a process say so."""
    with suppress(OSError):
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(descriptor, b"5")
        finally:
            os.close(descriptor)


def describe(device: torch.device = CPU) -> dict[str, object]:
    """Processor, GPU, threads and versions, for people who compare figures."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "cpu": _cpu_name(),
        **gpu,
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def peak_device_bytes(device: torch.device) -> int:
    """The most of a GPU's memory that tensors of this process have taken; 0 where there is no GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    finished(device)
    began_s = time.perf_counter()
    run()
    finished(device)
    return time.perf_counter() - began_s


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
