"""The stronger rival without merging: every expert in the same few bits, fitted on its own tokens (`fitting.py`)."""

from __future__ import annotations

import torch

from services.core.merging.errors import BudgetError
from services.model.compressions import Compressed
from services.model.compressions.fitted import stack_of
from services.model.evidence import Evidence, LayerEvidence, in_float32
from services.model.families.base import ExpertStack
from services.model.fitting import LayerFitter, form_bytes
from services.model.groups import full_form

UNMERGED = True
BITS = (8, 4, 3, 2, 1)


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    needed = needed_bytes(evidence, bits)
    if needed > room_bytes:
        raise BudgetError(needed, room_bytes)
    stacks = tuple(_layer(evidence, layer, bits) for layer in evidence.layers)
    return Compressed(stacks, needed, f"all experts, {bits} bits")


def needed_bytes(evidence: Evidence, bits: int) -> int:
    """What all experts take."""
    return sum(layer.num_experts * form_bytes(layer.stack, full_form(layer.stack, bits)) for layer in evidence.layers)


def _layer(evidence: Evidence, layer: LayerEvidence, bits: int) -> ExpertStack:
    fitter = LayerFitter(evidence.rule, in_float32(layer.stack), layer.tokens(), torch.float16)
    experts = range(layer.num_experts)
    kept = dict(zip(experts, fitter.fitted(experts, full_form(layer.stack, bits)), strict=True))
    return stack_of(layer.stack, kept, list(experts))
