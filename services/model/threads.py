"""Executors for tensor work: one thread each, so that a model has one user at a time; background ones yield the processor to serving."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

BACKGROUND_NICENESS = 10


def single_thread(name: str, *, background: bool = False, alone: bool = False) -> ThreadPoolExecutor:
    """`background` lowers the thread's own priority (Linux; elsewhere it has that of the process). Threads it starts inherit it.

    `alone`: tensor operations of this thread use no other. Beside one that computes on every core, two threads of low priority that wait
    for each other in each operation get on more slowly than one, and disturb more.
    """

    def begin() -> None:
        if background:
            _yield_processor()
        if alone:
            _compute_alone()

    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)


def _compute_alone() -> None:
    """torch keeps one number for each thread and one for threads that have not computed yet: set both, then the latter back."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    others = threading.Thread(target=torch.set_num_threads, args=(num_threads,))
    others.start()
    others.join()


def _yield_processor() -> None:
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
