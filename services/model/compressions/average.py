"""A control: M-SMoE's groups, plain mean (the baseline "averaging" of Li et al., ICLR 2024)."""

from __future__ import annotations

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import merged, plan_for, planned
from services.model.merges.average import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    plan = plan_for(evidence, room_bytes, bits, "mc-smoe")
    return merged(evidence, plan, bits, planned(plan), merge)
