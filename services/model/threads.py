"""Executors for tensor work: one thread each, so that a model has one user at a time; background ones yield the processor to serving."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

BACKGROUND_NICENESS = 10


def single_thread(name: str, *, background: bool = False) -> ThreadPoolExecutor:
    """`background` lowers the thread's own priority (Linux; elsewhere it has that of the process). Threads it starts inherit it."""
    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=_yield_processor if background else None)


def _yield_processor() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
