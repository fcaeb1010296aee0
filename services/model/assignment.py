"""The assignment of largest total gain, exactly. Large ones are begun by an auction, whose prices leave the exact method little to do.

Prices of columns change no assignment's rank (each pays all of them once), so they only need to be near the best ones (Bertsekas, "The
auction algorithm", 1988); scipy's shortest augmenting paths start without any.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment  # type: ignore[attr-defined,unused-ignore]  # re-exported without saying so

Gain = NDArray[np.float32]

AUCTION_FROM = 512  # rows; below, an auction costs more than it saves
_MAX_ROUNDS = 200  # few rows are left without a column by then, and they would take most of the rounds
_STEP = 0.01  # of the gains' spread: how much a bid is raised beyond what it must be


def best_assignment(gain: Gain) -> NDArray[np.int64]:
    """(n,): the column of each row, so that the sum of their gains is largest. `gain` (n, n)."""
    if len(gain) < AUCTION_FROM:
        return np.asarray(linear_sum_assignment(gain, maximize=True)[1], dtype=np.int64)
    regret = _prices(gain) - gain  # float64, so that it ranks assignments as the gains do
    regret -= regret.min(axis=1, keepdims=True)
    return np.asarray(linear_sum_assignment(regret)[1], dtype=np.int64)


def _prices(gain: Gain) -> NDArray[np.float64]:
    """(n,). In each round all rows without a column bid for the one they like best, up to what makes the second best as good."""
    num_rows = len(gain)
    step = _STEP * float(gain.std())
    prices = np.zeros(num_rows, dtype=np.float32)
    owners = np.full(num_rows, -1)
    free = np.arange(num_rows)
    for _ in range(_MAX_ROUNDS):
        worth = gain[free] - prices
        rows, wanted = np.arange(len(free)), worth.argmax(axis=1)
        best = worth[rows, wanted]
        worth[rows, wanted] = -np.inf
        bids = prices[wanted] + best - worth.max(axis=1) + step
        np.maximum.at(prices, wanted, bids)
        won = bids >= prices[wanted]
        owners[wanted[won]] = free[won]
        settled = np.zeros(num_rows, dtype=bool)
        settled[owners[owners >= 0]] = True
        free = np.flatnonzero(~settled)
        if not len(free):
            break
    return prices.astype(np.float64)
