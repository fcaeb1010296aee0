"""M-SMoE's groups without a mean: a group's tokens all go to its most used expert, unchanged (`merges/dominant.py` says why)."""

from __future__ import annotations

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import merged, plan_for, planned
from services.model.merges.dominant import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    plan = plan_for(evidence, room_bytes, bits, "mc-smoe")
    return merged(evidence, plan, bits, planned(plan), merge)
