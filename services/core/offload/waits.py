"""Rolls the work outstanding at one edge forward over its batch slots: when will a task that comes now start?

Pure arithmetic on predicted remainders. Who knows the remainders is the ledger's business.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.core.offload.values import StepTimes

MIN_TOKENS_LEFT = 1.0  # epsilon of reading A11: a task that outlives its prediction still needs a step


class Remainder(NamedTuple):
    """What one task still needs: seconds of reading its prompt, tokens to decode. A tuple, since a forecast makes one a task."""

    prefill_s: float
    decode_tokens: float


@dataclass(frozen=True, slots=True)
class WaitForecast:
    """`wait_s` as of the forecast; it melts as time passes, by at most `melts_s` until a task finishes."""

    wait_s: float = 0.0
    melts_s: float = 0.0


NO_WAIT = WaitForecast()


def step_s(times: StepTimes, rows: float) -> float:
    return times.step_base_s + times.step_row_s * rows


def prefill_s(times: StepTimes, prompt_tokens: float) -> float:
    return times.prefill_base_s + times.prefill_token_s * prompt_tokens


def forecast(tasks: Sequence[Remainder], times: StepTimes, slots: int) -> WaitForecast:
    """`tasks` in the order in which they get slots, running ones first.

    While anyone waits every slot is taken, so all rows advance one token each step_s(slots), and reading a prompt halts them all:
    wait = Σ prefill_s + step_s(slots) · C, where C counts tokens until the slot after the last task's start frees (list scheduling).
    With one slot this is Σ of predicted inference times, the FIFO sum of Algorithm 1 of the paper.
    """
    if len(tasks) < slots:
        return NO_WAIT
    token_s = step_s(times, slots)
    running = [task.decode_tokens for task in tasks[:slots]]
    running_prefill_s = sum(task.prefill_s for task in tasks[:slots])
    first_free_s = running_prefill_s + token_s * min(running)
    heapq.heapify(running)
    waiting_prefill_s = 0.0
    for task in tasks[slots:]:
        waiting_prefill_s += task.prefill_s
        heapq.heapreplace(running, running[0] + task.decode_tokens)
    wait_s = running_prefill_s + waiting_prefill_s + token_s * running[0]
    return WaitForecast(wait_s, max(first_free_s - token_s * MIN_TOKENS_LEFT, 0.0))
