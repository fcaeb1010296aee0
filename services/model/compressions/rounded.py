"""The rival without merging or calibration: every expert rounded to nearest (`quantise.py`: asymmetric, group 32, scale search)."""

from __future__ import annotations

from services.core.merging.errors import BudgetError
from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.memory import non_expert_bytes
from services.model.quantise import quantised, quantised_bytes

UNMERGED = True
BITS = (8, 4, 3, 2, 1)


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    model = evidence.base.model
    num_bytes = quantised_bytes(model, bits) - non_expert_bytes(model)
    if num_bytes > room_bytes:
        raise BudgetError(num_bytes, room_bytes)
    return Compressed(tuple(quantised(model, bits).experts), num_bytes, f"all experts, {bits} bits")
