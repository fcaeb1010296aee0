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

BUFFER_BYTES = 256 << 20  # far larger than any cache
ROUNDS = 7
MATRIX_WIDTH = 2048


def bandwidth_bytes_per_s() -> float:
    """Bytes a second with torch's threads, the best of some rounds: of reading a large buffer, or of copying it, whichever is more."""
    source = torch.ones(BUFFER_BYTES // 4)
    target = torch.zeros_like(source)
    copied = 2 * BUFFER_BYTES / min(_seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))
    return max(copied, BUFFER_BYTES / min(_seconds(source.sum) for _ in range(ROUNDS)))


def matrix_flops_per_s(dtype: torch.dtype) -> float:
    """Operations a second of square products, with torch's threads; the best of some."""
    left, right = (torch.ones(MATRIX_WIDTH, MATRIX_WIDTH, dtype=dtype) for _ in range(2))
    return 2 * MATRIX_WIDTH**3 / min(_seconds(lambda: left @ right) for _ in range(ROUNDS))


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


def describe() -> dict[str, object]:
    """Processor, threads and versions, for people who compare figures."""
    return {
        "cpu": _cpu_name(),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _seconds(run: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    run()
    return time.perf_counter() - began_s


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
