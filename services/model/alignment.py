"""Puts the hidden units of a group's experts in one order, so that averaging them means something.

Weight matching (spec/merging.md A.5): the group's dominant expert is the reference; the order of every other member maximises the inner
product of its weights with the reference's, found by the Hungarian method. Reordering changes no expert's function. A pair is matched
once per base model: what was found is kept in memory and on disk, whatever mix asked for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from services.model.assignment import best_assignment
from services.model.checkpoint import BaseModel
from services.model.families.base import OUT, ExpertStack
from services.model.tensor_files import header_problem, write_atomically

_MAX_HEADER_BYTES = 1 << 20

Pair = tuple[int, int, int]  # layer, expert, the expert with the larger id


class Aligned:
    """The orders found so far for the experts of one base model."""

    def __init__(self, experts: Sequence[ExpertStack], orders: dict[Pair, NDArray[np.int64]], path: Path | None) -> None:
        self._experts = experts
        self._orders = orders
        self._path = path
        self._num_saved = len(orders)

    def order(self, layer: int, reference: int, expert: int) -> NDArray[np.int64]:
        """(d_ff,): which hidden unit of `expert` goes to each place, to match those of `reference`."""
        if reference == expert:
            return np.arange(self._d_ff(layer))
        first, second = min(reference, expert), max(reference, expert)
        found = self._orders.get((layer, first, second))
        if found is None:
            found = self._orders[layer, first, second] = _match(self._experts[layer], first, second)
        return found if reference == first else np.argsort(found)

    def apart(self) -> Aligned:
        """The same orders; what is found from then on is not kept."""
        return Aligned(self._experts, dict(self._orders), None)

    def has(self, layer: int, reference: int, expert: int) -> bool:
        """Whether their order was found before."""
        return reference == expert or (layer, min(reference, expert), max(reference, expert)) in self._orders

    def members(self, layer: int, group: Sequence[int]) -> dict[str, Tensor]:
        """Weights of a group's experts in the order of the first, float32: (len(group), *matrix_shape) each."""
        stack = self._experts[layer]
        orders = torch.from_numpy(np.stack([self.order(layer, group[0], expert) for expert in group])).to(stack.index_map.device)
        return {name: _reordered(weight[list(group)].float(), orders, hidden_axis(name)) for name, weight in stack.weights.items()}

    def release(self, layer: int) -> None:
        """Give back memory that a layer's experts can be read into again."""
        self._experts[layer].release()

    def save(self) -> None:
        """Write what was found since the last time."""
        if self._path is None or len(self._orders) == self._num_saved:
            return
        tensors = {}
        for layer in range(len(self._experts)):
            pairs = sorted(pair for pair in self._orders if pair[0] == layer)
            if pairs:
                tensors[f"{layer}.pairs"] = torch.tensor([pair[1:] for pair in pairs], dtype=torch.int32)
                tensors[f"{layer}.orders"] = torch.from_numpy(np.stack([self._orders[pair] for pair in pairs])).int()
        write_atomically(self._path, save(tensors))
        self._num_saved = len(self._orders)

    def _d_ff(self, layer: int) -> int:
        name, weight = next(iter(self._experts[layer].weights.items()))
        return int(weight.shape[hidden_axis(name)])


def align(base: BaseModel, cache_dir: Path | None = None) -> Aligned:
    """The orders of a base model; those found before come from `cache_dir`."""
    path = None if cache_dir is None else cache_dir / f"alignment-{base.base_id}-{base.dtype}.safetensors"
    return Aligned(base.model.experts, {} if path is None else _read(path, base.model.experts), path)


def _match(stack: ExpertStack, reference: int, expert: int) -> NDArray[np.int64]:
    matrices = [(_hidden_first(name, weight[reference]), _hidden_first(name, weight[expert])) for name, weight in stack.weights.items()]
    gain = torch.stack([kept @ moved.T for kept, moved in matrices]).sum(0)
    return best_assignment(gain.numpy())


def hidden_axis(name: str) -> int:
    """Where the hidden units are in a stacked weight: last in the projection out of them, first in everything that leads in."""
    return 2 if name == OUT else 1


def _hidden_first(name: str, weight: Tensor) -> Tensor:
    """(d_ff, width) float32 on the CPU."""
    weight = weight.detach().float().cpu()
    if weight.dim() == 1:
        return weight.unsqueeze(1)
    return weight.T if name == OUT else weight


def _reordered(weight: Tensor, orders: Tensor, axis: int) -> Tensor:
    index = orders if weight.dim() == 2 else orders.unsqueeze(3 - axis).expand_as(weight)
    return weight.gather(axis, index)


def _read(path: Path, experts: Sequence[ExpertStack]) -> dict[Pair, NDArray[np.int64]]:
    """Nothing where the file is absent or not what it should be: orders are then found again."""
    try:
        data = path.read_bytes()
        if header_problem(data[: 8 + _MAX_HEADER_BYTES], len(data), _MAX_HEADER_BYTES) is not None:
            return {}
        stored = load(data)
    except (OSError, SafetensorError):
        return {}
    orders: dict[Pair, NDArray[np.int64]] = {}
    for layer, stack in enumerate(experts):
        pairs, rows = stored.get(f"{layer}.pairs"), stored.get(f"{layer}.orders")
        if pairs is None or rows is None:
            continue
        d_ff = next(weight.shape[hidden_axis(name)] for name, weight in stack.weights.items())
        if rows.shape != (pairs.shape[0], d_ff) or not bool((rows.sort(dim=1).values == torch.arange(d_ff)).all()):
            return {}
        for (first, second), row in zip(pairs.tolist(), rows.numpy(), strict=True):
            orders[layer, first, second] = row.astype(np.int64)
    return orders
