"""A binary tree over merge weights, finer where they were tried: each leaf is a simplex of mixes, split in half along its longest edge.

Says which weights are worth trying next; what they are worth is the bandit's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]  # (num_task_types,), sums to 1


@dataclass(slots=True)
class _Node:
    corners: NDArray[np.float64]  # (num_task_types, num_task_types), one corner a row
    visits: int = 0
    halved: tuple[int, int] | None = None  # the corners between which it was split
    halves: tuple[_Node, _Node] | None = None

    def split(self) -> None:
        distances = np.linalg.norm(self.corners[:, None] - self.corners[None], axis=2)
        i, j = (int(k) for k in np.unravel_index(int(distances.argmax()), distances.shape))
        middle = (self.corners[i] + self.corners[j]) / 2.0
        near_i, near_j = self.corners.copy(), self.corners.copy()
        near_i[j], near_j[i] = middle, middle
        self.halved, self.halves = (i, j), (_Node(near_i), _Node(near_j))


def leaf_centres(num_task_types: int, tried: Sequence[Weights], split_after: int) -> list[Weights]:
    """Centres of the leaves after these weights were tried in this order; a leaf splits when it was tried `split_after` times.

    The tree begins with at least two leaves a task type, since one centre of everything is no choice.
    """
    root = _Node(np.eye(num_task_types))
    leaves = [root]
    while num_task_types > 1 and len(leaves) < 2 * num_task_types:
        leaves = [half for leaf in leaves for half in _split(leaf)]
    for weights in tried:
        leaf = _leaf_of(root, weights)
        leaf.visits += 1
        if leaf.visits >= split_after and num_task_types > 1:
            leaf.split()
    return [leaf.corners.mean(axis=0) for leaf in _leaves(root)]


def _split(leaf: _Node) -> tuple[_Node, _Node]:
    leaf.split()
    assert leaf.halves is not None
    return leaf.halves


def _leaf_of(node: _Node, weights: Weights) -> _Node:
    """Follows barycentric coordinates: the half of the nearer end takes the middle for the other end."""
    share = weights.copy()
    while node.halved is not None and node.halves is not None:
        i, j = node.halved
        near, far, half = (i, j, 0) if share[i] >= share[j] else (j, i, 1)
        share[near], share[far] = share[near] - share[far], 2.0 * share[far]
        node = node.halves[half]
    return node


def _leaves(node: _Node) -> list[_Node]:
    if node.halves is None:
        return [node]
    return [leaf for half in node.halves for leaf in _leaves(half)]
