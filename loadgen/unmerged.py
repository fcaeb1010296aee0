"""Measures what the unmerged model, quantised to an edge's memory, scores: the rival that every merge must be held against.

Loads the model (torch), so it runs in a process of its own beside the load generator's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loadgen.report.values import UnmergedArm

ITEMS_PER_TYPE = 80
FEWEST_BITS = 1


@dataclass(frozen=True, slots=True)
class UnmergedRequest:
    """Picklable: it crosses into the measuring process."""

    model: str
    tasks: str
    memory_bytes: Mapping[str, int]  # by edge
    dtype: str = "float32"
    torch_threads: int = 2
    items_per_type: int = ITEMS_PER_TYPE


def unmerged_arms(request: UnmergedRequest) -> tuple[UnmergedArm, ...]:
    """One arm an edge: the most bits that fit, rounding to nearest with scale search; edges with equal bits are measured once."""
    import torch

    from services.model.calibration import answer_limit, measure
    from services.model.checkpoint import read_base
    from services.model.memory import dtype_of, unique_bytes
    from services.model.quantise import bits_for_budget, quantised, quantised_bytes
    from services.tasks.scoring import SCORERS
    from services.tasks.sources import open_tasks

    torch.set_num_threads(request.torch_threads)
    base = read_base(request.model, dtype=request.dtype)
    scored = open_tasks(request.tasks, "heldout", request.items_per_type)
    items = {task_type: scored.of_type(task_type) for task_type in scored.task_types}
    scorers = {task_type: SCORERS[name] for task_type, name in scored.scorers.items()}
    max_tokens = answer_limit(base.tokenizer, items)
    full_bytes, full_bits = unique_bytes(base.model), torch.finfo(dtype_of(request.dtype)).bits
    measured: dict[int, Mapping[str, float]] = {}
    arms = []
    for edge_id, memory_bytes in sorted(request.memory_bytes.items()):
        if memory_bytes >= full_bytes:
            bits, size, fits = full_bits, full_bytes, True
        else:
            found = bits_for_budget(base.model, memory_bytes)
            bits, fits = found or FEWEST_BITS, found is not None
            size = quantised_bytes(base.model, bits)
        if bits not in measured:
            model = base.model if bits == full_bits else quantised(base.model, bits)
            measured[bits] = measure(model, base.tokenizer, items, scorers, max_tokens).quality
        arms.append(UnmergedArm(edge_id, bits, size, memory_bytes, dict(measured[bits]), fits))
    return tuple(arms)
