"""Home: every user is bound to the nearest server; nothing is balanced. For papers on one server, which define no dispatch.

Nearest is the lowest latency from the user's region. Servers equally near share users by a hash of user and server, so that a server that
leaves moves nobody but its own users.
"""

from __future__ import annotations

import hashlib

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.policies import Choice
from services.core.offload.values import EdgeSnapshot, Task


class Home:
    def choose(self, task: Task, candidates: CandidateTable, rng: np.random.Generator) -> Choice:
        latencies_s = [_latency_s(edge, task.region) for edge in candidates.edges]
        nearest_s = min(latencies_s)
        near = [row for row, latency_s in enumerate(latencies_s) if latency_s == nearest_s]
        row = max(near, key=lambda row: _draw(task.user_id, candidates.edges[row].edge_id))
        return Choice((row,), "home server of the user")

    def chosen(self, edge_ids: tuple[str, ...]) -> None:
        """Keeps no state."""


def _latency_s(edge: EdgeSnapshot, region: str) -> float:
    """A candidate without a link of the region's own is reached by its default one."""
    link = edge.links.get(region)
    return link.latency_s if link else max((other.latency_s for other in edge.links.values()), default=0.0)


def _draw(user_id: str, edge_id: str) -> bytes:
    return hashlib.blake2b(f"{user_id}\0{edge_id}".encode(), digest_size=8).digest()


POLICY = Home
