"""Random experts in several forms, packed, with the same experts dense beside them."""

from __future__ import annotations

import torch
from torch import Tensor

from services.model.compensation import packed_experts
from services.model.families.packed_weights import PackedWeights
from services.model.packed import PackedMatrix
from services.model.records import RecordLayout

D_MODEL, D_FF = 32, 48
FORMS = ((1, 16, 0, 3), (2, 48, 1, 2), (3, 12, 0, 4), (4, 24, 0, 2), (8, 48, 0, 1), (16, 40, 0, 2))  # bits, units, rank, experts


def make_expert(bits: int, units: int, rank: int = 0, *, seed: int = 0, d_model: int = D_MODEL, names=("wi",)) -> dict[str, PackedMatrix]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {**dict.fromkeys(names, (units, d_model)), "wo": (d_model, units)}
    weights = {name: torch.randn(1, *shape, generator=generator) for name, shape in shapes.items()}
    return {name: packed_experts(w, torch.eye(w.shape[2]).unsqueeze(0), bits, rank, torch.float16)[0] for name, w in weights.items()}


def make_packed() -> tuple[PackedWeights, dict[str, Tensor]]:
    """Experts of several forms, and dense ones of `D_FF` units that compute the same; a last dense one of zeros."""
    records, dense = {}, []
    for bits, units, rank, num_experts in FORMS:
        experts = [make_expert(bits, units, rank, seed=10 * bits + n) for n in range(num_experts)]
        layout = RecordLayout.of(experts[0])
        records[layout] = torch.stack([layout.record(expert) for expert in experts])
        dense += [_widened(expert) for expert in experts]
    dense.append({"wi": torch.zeros(D_FF, D_MODEL), "wo": torch.zeros(D_MODEL, D_FF)})
    return PackedWeights(records), {name: torch.stack([one[name] for one in dense]) for name in ("wi", "wo")}


def _widened(expert: dict[str, PackedMatrix]) -> dict[str, Tensor]:
    into, out = expert["wi"].unpacked(), expert["wo"].unpacked()
    wide = {"wi": torch.zeros(D_FF, D_MODEL), "wo": torch.zeros(D_MODEL, D_FF)}
    wide["wi"][: len(into)] = into
    wide["wo"][:, : out.shape[1]] = out
    return wide
