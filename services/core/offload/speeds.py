"""How fast an edge serves, as one number from its step times. For policies that weigh servers and predict no task."""

from __future__ import annotations

from services.core.offload.values import EdgeSnapshot
from services.core.offload.waits import prefill_s, step_s

TYPICAL_PROMPT_TOKENS, TYPICAL_OUTPUT_TOKENS = 32, 8
MIN_SERVICE_S = 1e-9


def service_s(edge: EdgeSnapshot, rows: float = 1.0) -> float:
    """Inference time of a typical task while the batch holds `rows`."""
    times = edge.step_times
    return max(prefill_s(times, TYPICAL_PROMPT_TOKENS) + TYPICAL_OUTPUT_TOKENS * step_s(times, rows), MIN_SERVICE_S)


def tasks_per_s(edge: EdgeSnapshot) -> float:
    """Typical tasks a second with every batch slot taken."""
    rows = max(edge.max_batch, 1)
    return rows / service_s(edge, rows)
