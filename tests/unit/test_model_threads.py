"""Threads for tensor work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch

from services.model.threads import single_thread


def test_a_thread_that_computes_alone_leaves_the_cores_of_others_to_them():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        alone, other = single_thread("alone", alone=True), single_thread("other")
        assert [own(alone), own(other), own(alone)] == [1, 2, 1]
        assert torch.get_num_threads() == 2
        for thread in (alone, other):
            thread.shutdown()
    finally:
        torch.set_num_threads(before)


def own(thread: ThreadPoolExecutor) -> int:
    return thread.submit(torch.get_num_threads).result()
