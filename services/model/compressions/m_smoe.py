"""M-SMoE (Li et al., ICLR 2024, arXiv 2310.01334): global allocation by use, groups by router logits, mean weighted by use, aligned.

Without the recovery training of the paper: every compression here is one-shot.
"""

from __future__ import annotations

from services.model.compressions import Compressed
from services.model.evidence import Evidence
from services.model.groups import merged, plan_for, planned
from services.model.merges.m_smoe import merge


def compress(evidence: Evidence, room_bytes: int, bits: int) -> Compressed:
    plan = plan_for(evidence, room_bytes, bits, "mc-smoe")
    return merged(evidence, plan, bits, planned(plan), merge)
