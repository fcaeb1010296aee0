"""M-SMoE written down as its paper and released code have it, with torch and nothing of ours: what our merging is measured against.

A layer at a time: similarities from router logits, groups, the order of every expert's hidden units by the Hungarian method where no
order is given, reordered copies, and a mean of weighted copies. Weights come from the checkpoint as transformers names them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from scipy.optimize import linear_sum_assignment  # type: ignore[attr-defined,unused-ignore]  # re-exported without saying so
from torch import Tensor

Orders = Mapping[tuple[int, int], Tensor]  # (reference, expert): which hidden unit of the expert goes to each place
Expert = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class PlainLayer:
    """One layer to merge. `shares` of every expert in its group; those of a group add up to 1."""

    file: Path
    prefix: str  # of the experts' names
    logits: NDArray[np.float64]  # (num_tokens, num_experts)
    dominants: Sequence[int]
    shares: Sequence[float]


def groups(layer: PlainLayer) -> list[list[int]]:
    """Every expert joins the dominant one with the most similar column of logits; groups by dominant, which comes first."""
    logits = torch.from_numpy(layer.logits)
    columns = logits / logits.norm(dim=0).clamp(min=1e-12)
    similarity = (columns.T @ columns + 1) / 2
    members: dict[int, list[int]] = {dominant: [] for dominant in sorted(layer.dominants)}
    for expert in range(logits.shape[1]):
        if expert not in members:
            best = max(layer.dominants, key=lambda dominant: float(similarity[expert, dominant]))
            members[best].append(expert)
    return [[dominant, *others] for dominant, others in members.items()]


def merged(layer: PlainLayer, orders: Orders | None, in_place: bool = False) -> list[Expert]:
    """One expert a group. Without `orders` each is found. `in_place` is a tighter loop than the released code's: it adds up as it goes."""
    with safe_open(layer.file, "pt") as file:

        def read(expert: int) -> Expert:
            return {name: file.get_tensor(f"{layer.prefix}.expert_{expert}.{name}.weight") for name in ("wi", "wo")}

        mean = _added_up if in_place else _stacked
        return [mean(_reordered(read, group, orders), [layer.shares[e] for e in group]) for group in groups(layer)]


def matched(reference: Expert, expert: Expert) -> Tensor:
    """The order that maximises the inner product of the two experts' weights."""
    gain = reference["wi"] @ expert["wi"].T + reference["wo"].T @ expert["wo"]
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1])


def _reordered(read: Callable[[int], Expert], group: Sequence[int], orders: Orders | None) -> Iterator[Expert]:
    """The members, the dominant one first, with their hidden units in its order."""
    reference = read(group[0])
    yield reference
    for expert in group[1:]:
        weights = read(expert)
        order = matched(reference, weights) if orders is None else orders[group[0], expert]
        yield {"wi": weights["wi"].index_select(0, order), "wo": weights["wo"].index_select(1, order)}


def _stacked(members: Iterator[Expert], shares: Sequence[float]) -> Expert:
    """As the released code does it: weighted copies, stacked, summed, and divided by what they count together."""
    weighted = [{name: weight * share for name, weight in member.items()} for member, share in zip(members, shares, strict=True)]
    return {name: torch.stack([member[name] for member in weighted]).sum(0) / sum(shares) for name in ("wi", "wo")}


def _added_up(members: Iterator[Expert], shares: Sequence[float]) -> Expert:
    total: Expert = {}
    for member, share in zip(members, shares, strict=True):
        for name, weight in member.items():
            total[name] = weight * share if name not in total else total[name].add_(weight, alpha=share)
    return total
