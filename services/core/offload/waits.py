"""Rolls the work outstanding at one edge forward over its batch slots: when will a task that comes now start?

Pure arithmetic on predicted remainders. Who knows the remainders is the ledger's business.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from services.core.offload.values import StepTimes, value

MIN_TOKENS_LEFT = 1.0  # epsilon of reading A11: a task that outlives its prediction still needs a step


@value
class WaitForecast:
    """`wait_s` as of the forecast; it melts as time passes, by at most `melts_s` until a task finishes."""

    wait_s: float = 0.0
    melts_s: float = 0.0


NO_WAIT = WaitForecast()


def step_s(times: StepTimes, rows: float) -> float:
    return times.step_base_s + times.step_row_s * rows


def prefill_s(times: StepTimes, prompt_tokens: float) -> float:
    return times.prefill_base_s + times.prefill_token_s * prompt_tokens


def forecast(
    running: list[float], running_prefill_s: float, waiting: Iterable[float], waiting_prefill_s: float, token_s: float
) -> WaitForecast:
    """`running`: tokens that each task in a slot still decodes, one for each slot, taken over by the forecast; `waiting`: tokens of the
    others, in the order in which they get slots. `token_s` is the time of a full batch's step. Prefill times are sums.

    While anyone waits every slot is taken, so all rows advance one token each step, and reading a prompt halts them all:
    wait = Σ prefill_s + token_s · C, where C counts tokens until the slot after the last task's start frees (list scheduling).
    With one slot this is Σ of predicted inference times, the FIFO sum of Algorithm 1 of the paper.
    """
    heapq.heapify(running)
    melts_s = running_prefill_s + token_s * (running[0] - MIN_TOKENS_LEFT)
    for tokens in waiting:
        heapq.heapreplace(running, running[0] + tokens)
    return WaitForecast(running_prefill_s + waiting_prefill_s + token_s * running[0], max(melts_s, 0.0))
