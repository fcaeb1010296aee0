"""What a model weighs: bytes of unique weight storages, and the budget terms that plans are made with.

Index maps are not weights: they travel in the manifest and cost 4 bytes an expert. Every weight, routers and norms included, is held in
the dtype that the checkpoint was read in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from services.core.merging.values import Budget
from services.model.errors import CheckpointError
from services.model.families.base import ExpertStack, MoeModel
from services.model.families.blocked import BlockedStack

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise CheckpointError(f"dtype: {name!r} is unknown; use one of {', '.join(DTYPES)}")
    return DTYPES[name]


def unique_bytes(model: MoeModel) -> int:
    """Bytes of all weights, each storage once."""
    return held_bytes([model])


def held_bytes(models: Iterable[MoeModel]) -> int:
    """Bytes of the weights of all models together, each storage once."""
    storages: dict[tuple[str, int], int] = {}
    for model in models:
        for tensor in (part for whole in model.parameters().values() for part in _parts(whole)):
            key = _storage(tensor)
            storages[key] = max(storages.get(key, 0), tensor.numel() * tensor.element_size())
    return sum(storages.values())


def _parts(tensor: Tensor) -> Sequence[Tensor]:
    """Of a stack laid out its matrices, since versions share them one by one."""
    return tensor.matrices if isinstance(tensor, BlockedStack) else (tensor,)


def _storage(tensor: Tensor) -> tuple[str, int]:
    """What is laid out for products has no address; models share it as the same object."""
    if tensor.is_mkldnn:
        return "object", id(tensor)
    return "address", tensor.untyped_storage().data_ptr()


def expert_bytes(stack: ExpertStack) -> int:
    """Bytes of one expert of a layer."""
    return stack.num_bytes() // stack.num_kept


def non_expert_bytes(model: MoeModel) -> int:
    return unique_bytes(model) - sum(stack.num_bytes() for stack in model.experts)


def budget_for(full: MoeModel, budget_bytes: int, reserve_bytes: int = 0) -> Budget:
    """The terms of a memory budget, from the unmerged model in the dtype it will be served in."""
    return Budget(budget_bytes, non_expert_bytes(full), tuple(expert_bytes(stack) for stack in full.experts), reserve_bytes)
