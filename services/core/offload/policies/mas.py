"""MAS: users as players of a multi-user bandit over servers, DEBO (Wang, Ye, Lui, INFOCOM 2022; arXiv 2112.11818).

Epochs l = 1, 2, ...: users visit the servers in turn, each from another start (exploration); a matching of users to server slots by their
mean rewards, slots in proportion to speed; the match is played for 2^l rounds (exploitation). A round is one task of every user; tasks are
not synchronous here, so rounds are counted in tasks. Users who come during exploitation explore until the next match.

Reward of a server to a user: clip((1 - completion time / D + w · alpha · quality) / (1 + w), 0, 1) of the means over the user's tasks
there, D the running 95th percentile of all completion times. Paper's form: w = 0 (delay only, as published) and the decentralised auction.
Strong form: w = 1, the exact match, and the means of a server restart when its version changes. `rule="ucb1"` is the simpler variant: each
user an independent UCB1.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.matching import by_auction, by_optimum, smallest_gap
from services.core.offload.policies import Choice, Outcome
from services.core.offload.policies._forms import PAPER, STRONG, checked_form
from services.core.offload.speeds import tasks_per_s
from services.core.offload.table import Column
from services.core.offload.values import EdgeSnapshot, Task

MAX_PLAYERS = 64  # further users share these, so that a match stays cheap
MAX_EPOCH = 16
SCALE_TASKS = 256  # completion times that D looks back on


@dataclass(slots=True)
class _Arm:
    """One server in the eyes of one player."""

    version: str
    tries: int = 0
    num_finished: int = 0
    completion_time_s: float = 0.0  # mean
    worth: float = 0.0  # mean of alpha · quality


class BanditOffloading:
    def __init__(self, form: str = STRONG, rule: str = "debo", visits: int = 1) -> None:
        if rule not in ("debo", "ucb1"):
            raise ValueError(f"rule is {rule!r}: choose debo or ucb1")
        if visits < 1:
            raise ValueError(f"visits is {visits}: each user visits each server at least once an epoch")
        self._paper = checked_form(form) == PAPER
        self._ucb = rule == "ucb1"
        self._visits = visits
        self._players: dict[str, int] = {}
        self._num_players = 0
        self._arms: dict[tuple[int, str], _Arm] = {}
        self._turns: dict[int, int] = {}  # player -> visits of the present exploration
        self._match: dict[int, str] = {}  # empty while everybody explores
        self._epoch = 1
        self._tasks_left = 0  # of the exploitation
        self._times_s: deque[float] = deque(maxlen=SCALE_TASKS)
        self._scale_s = 1.0  # D

    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        player = self._player(task.user_id)
        if self._ucb:
            return self._confident(player, candidates.edges)
        if player not in self._match:
            return Choice(((player + self._turns.get(player, 0)) % len(candidates),), "explores servers in turn")
        for row, edge in enumerate(candidates.edges):
            if edge.edge_id == self._match[player]:
                return Choice((row,), "server matched to the user")
        return Choice((int(np.argmax(self._rewards(player, candidates.edges))),), "best reward, the matched server is no candidate")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """What is remembered needs the task: `sent`."""

    def sent(self, task: Task, candidates: CandidateTable, rows: tuple[int, ...]) -> None:
        player = self._player(task.user_id)
        if task.user_id not in self._players and len(self._players) < MAX_PLAYERS:
            self._players[task.user_id] = player
            self._num_players = len(self._players)
        edge = candidates.edges[rows[0]]
        arm = self._arm(player, edge)
        if arm is None:
            arm = self._arms[(player, edge.edge_id)] = _Arm(edge.version)
        arm.tries += 1
        if self._ucb:
            return
        if player not in self._match:
            self._turns[player] = self._turns.get(player, 0) + 1
        if self._match:
            self._tasks_left -= 1
            if self._tasks_left <= 0:
                self._epoch, self._match, self._turns = min(self._epoch + 1, MAX_EPOCH), {}, {}
        elif sum(self._turns.values()) >= self._visits * len(candidates) * self._num_players:
            self._exploit(candidates.edges)

    def learned(self, outcome: Outcome) -> None:
        self._times_s.append(outcome.completion_time_s)
        self._scale_s = max(float(np.percentile(np.array(self._times_s), 95.0)), 1e-9)
        arm = self._arms.get((self._player(outcome.task.user_id), outcome.edge_id))
        if arm is None or (arm.version != outcome.version and not self._paper):
            return
        arm.num_finished += 1
        arm.completion_time_s += (outcome.completion_time_s - arm.completion_time_s) / arm.num_finished
        arm.worth += (outcome.task.alpha * outcome.quality - arm.worth) / arm.num_finished

    def _player(self, user_id: str) -> int:
        known = self._players.get(user_id)
        if known is not None:
            return known
        return self._num_players if self._num_players < MAX_PLAYERS else zlib.crc32(user_id.encode()) % MAX_PLAYERS

    def _arm(self, player: int, edge: EdgeSnapshot) -> _Arm | None:
        """None for a server that the player never tried; in the strong form, with the version that it serves."""
        arm = self._arms.get((player, edge.edge_id))
        return arm if arm is None or self._paper or arm.version == edge.version else None

    def _rewards(self, player: int, edges: Sequence[EdgeSnapshot]) -> list[float]:
        """Mean rewards; of a server without any, what all players have seen on average."""
        arms = [self._arm(player, edge) for edge in edges]
        rewards = [self._reward(arm) if arm is not None and arm.num_finished else None for arm in arms]
        usual = self._usual_reward() if None in rewards else 0.0
        return [usual if reward is None else reward for reward in rewards]

    def _usual_reward(self) -> float:
        seen = [self._reward(arm) for arm in self._arms.values() if arm.num_finished]
        return sum(seen) / len(seen) if seen else 0.5

    def _reward(self, arm: _Arm) -> float:
        weight = 0.0 if self._paper else 1.0
        reward = (1.0 - arm.completion_time_s / self._scale_s + weight * arm.worth) / (1.0 + weight)
        return min(max(reward, 0.0), 1.0)

    def _confident(self, player: int, edges: Sequence[EdgeSnapshot]) -> Choice:
        """UCB1, tasks under way counted among the tries; servers never tried come first, each player from another start."""
        tries = [arm.tries if (arm := self._arm(player, edge)) else 0 for edge in edges]
        untried = [row for row, tried in enumerate(tries) if not tried]
        if untried:
            return Choice((untried[player % len(untried)],), "tries a new server")
        bounds = np.array(self._rewards(player, edges)) + np.sqrt(2.0 * math.log(sum(tries)) / np.array(tries))
        return Choice((int(bounds.argmax()),), "highest upper confidence bound")

    def _exploit(self, edges: Sequence[EdgeSnapshot]) -> None:
        values = np.array([self._rewards(player, edges) for player in range(self._num_players)])
        servers = self._matched(values, _slots(edges, self._num_players))
        self._match = {player: edges[server].edge_id for player, server in enumerate(servers)}
        self._tasks_left = 2**self._epoch * len(edges) * self._num_players

    def _matched(self, values: Column, slots: Sequence[int]) -> tuple[int, ...]:
        if self._paper:
            return by_auction(values, slots, smallest_gap(values) / (2 * len(values)))
        return by_optimum(values, slots)


def _slots(edges: Sequence[EdgeSnapshot], num_players: int) -> list[int]:
    """Of each server, in proportion to its speed; together at least one a player."""
    speeds = [tasks_per_s(edge) for edge in edges]
    return [max(math.ceil(num_players * speed / sum(speeds) - 1e-9), 1) for speed in speeds]


POLICY = BanditOffloading
