"""Who gets a slot of which server, so that the sum of values is largest: by auction among the players, and centrally.

The auction is the decentralised one of DEBO (Wang, Ye, Lui, INFOCOM 2022); it is within `num_players · epsilon` of the optimum
(Bertsekas). Slots of one server are alike, so a bid looks at the best slot of another server, which ends price wars among equals.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment  # type: ignore[attr-defined,unused-ignore]  # re-exported without saying so

from services.core.offload.table import Column

MIN_GAP = 0.01  # smaller differences of values are not told apart: they would take ever more rounds


def smallest_gap(values: Column) -> float:
    """Of two values that one player tells apart; `values` are (num_players, num_servers)."""
    gaps = np.diff(np.sort(values, axis=1), axis=1)
    gaps = gaps[gaps >= MIN_GAP]
    return float(gaps.min()) if len(gaps) else MIN_GAP


def by_auction(values: Column, slots: Sequence[int], epsilon: float) -> tuple[int, ...]:
    """The server of each player."""
    num_players, num_servers = _checked(values, slots)
    prices = [np.zeros(n) for n in slots]
    owners = [np.full(n, -1) for n in slots]
    servers = np.full(num_players, -1)
    unassigned = list(range(num_players - 1, -1, -1))
    while unassigned:
        player = unassigned.pop()
        gains = np.array([values[player, s] - prices[s].min() if slots[s] else -np.inf for s in range(num_servers)])
        best = int(gains.argmax())
        others = np.delete(gains, best)
        second = max(float(others.max(initial=-np.inf)), float(gains[best]) - 1.0)
        slot = int(prices[best].argmin())
        prices[best][slot] += gains[best] - second + epsilon
        outbid = int(owners[best][slot])
        if outbid >= 0:
            unassigned.append(outbid)
        owners[best][slot] = player
        servers[player] = best
    return tuple(int(s) for s in servers)


def by_optimum(values: Column, slots: Sequence[int]) -> tuple[int, ...]:
    """The server of each player, by the Hungarian method."""
    _checked(values, slots)
    server_of_slot = np.repeat(np.arange(len(slots)), slots)
    players, columns = linear_sum_assignment(values[:, server_of_slot], maximize=True)
    return tuple(int(server_of_slot[column]) for _, column in sorted(zip(players, columns, strict=True)))


def total_value(values: Column, servers: Sequence[int]) -> float:
    return float(sum(values[player, server] for player, server in enumerate(servers)))


def _checked(values: Column, slots: Sequence[int]) -> tuple[int, int]:
    num_players, num_servers = values.shape
    if len(slots) != num_servers or sum(slots) < num_players:
        raise ValueError(f"slots are {list(slots)} for {num_players} players and {num_servers} servers: each player needs one")
    return num_players, num_servers
