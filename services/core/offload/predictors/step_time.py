"""Corrects the step times an edge publishes by the inference times this broker observes: recursive least squares, one state per edge.

The four coefficients of `StepTimes` are scaled by their published values, so that each starts at one and errors are relative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from services.core.offload.values import StepTimes

MIN_COEFFICIENT_S = 1e-6  # lets a coefficient published as zero be learnt
PRIOR_SD = 0.5  # of each scaled coefficient: published values are right within about half
NOISE_SD = 0.2  # of an observed inference time, relative
WALK_SD = 0.02  # by which a coefficient may move from task to task: an edge gets slower or faster while serving
MAX_INNOVATION = 2.0  # a hiccup counts at most as three times the predicted time
RESTART_RATIO = 1.4  # published values that moved further than this replace what was learnt
TYPICAL_PROMPT_TOKENS, TYPICAL_OUTPUT_TOKENS = 32, 8

Four = tuple[float, float, float, float]  # one number for each coefficient: prefill base, prefill token, step base, step row


@dataclass(slots=True)
class _State:
    published: StepTimes
    reference: Four  # seconds that one unit of each coefficient stands for
    coefficients: Four  # in units of `reference`, none below 0
    covariance: tuple[Four, Four, Four, Four]


class StepTimePredictor:
    """Four numbers at a time are too few for arrays to pay: plain arithmetic takes a third of the time."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}

    def step_times(self, edge_id: str, published: StepTimes) -> StepTimes:
        """The published values until tasks were observed; afterwards the corrected ones."""
        state = self._states.get(edge_id)
        if state is None:
            return published
        if _moved(state.published, published):
            del self._states[edge_id]
            return published
        (c0, c1, c2, c3), (r0, r1, r2, r3) = state.coefficients, state.reference
        return StepTimes(step_base_s=c2 * r2, step_row_s=c3 * r3, prefill_base_s=c0 * r0, prefill_token_s=c1 * r1)

    def observe(self, edge_id: str, published: StepTimes, prompt_tokens: int, output_tokens: int, rows: float, inference_s: float) -> None:
        """`rows`: tasks in the batch while this one ran, averaged."""
        if inference_s <= 0.0:
            return
        state = self._states.get(edge_id)
        if state is None:
            state = self._states[edge_id] = _start(published)
        r0, r1, r2, r3 = state.reference
        features = (r0, prompt_tokens * r1, output_tokens * r2, output_tokens * rows * r3)
        predicted_s = max(_dot(features, state.coefficients), 1e-6)
        relative = _scaled(features, 1.0 / predicted_s)
        innovation = min(inference_s / predicted_s - 1.0, MAX_INNOVATION)
        p0, p1, p2, p3 = state.covariance
        row = (_dot(p0, relative), _dot(p1, relative), _dot(p2, relative), _dot(p3, relative))
        g0, g1, g2, g3 = gain = _scaled(row, 1.0 / (NOISE_SD**2 + _dot(row, relative)))
        c0, c1, c2, c3 = _plus(state.coefficients, gain, innovation)
        state.coefficients = (max(c0, 0.0), max(c1, 0.0), max(c2, 0.0), max(c3, 0.0))
        state.covariance = _bounded((_plus(p0, row, -g0), _plus(p1, row, -g1), _plus(p2, row, -g2), _plus(p3, row, -g3)))


def _dot(one: Four, other: Four) -> float:
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2] + one[3] * other[3]


def _scaled(values: Four, factor: float) -> Four:
    return values[0] * factor, values[1] * factor, values[2] * factor, values[3] * factor


def _plus(values: Four, steps: Four, factor: float) -> Four:
    return values[0] + steps[0] * factor, values[1] + steps[1] * factor, values[2] + steps[2] * factor, values[3] + steps[3] * factor


def _bounded(covariance: tuple[Four, Four, Four, Four]) -> tuple[Four, Four, Four, Four]:
    """With the walk of one task added, and no coefficient less certain than at the start."""
    (a, b, c, d), (_, e, f, g), (_, _, h, i), (_, _, _, j) = covariance
    a, e, h, j = a + _WALK, e + _WALK, h + _WALK, j + _WALK
    s0, s1, s2, s3 = _shrink(a), _shrink(e), _shrink(h), _shrink(j)
    b, c, d, f, g, i = b * s0 * s1, c * s0 * s2, d * s0 * s3, f * s1 * s2, g * s1 * s3, i * s2 * s3
    a, e, h, j = a * s0 * s0, e * s1 * s1, h * s2 * s2, j * s3 * s3
    return (a, b, c, d), (b, e, f, g), (c, f, h, i), (d, g, i, j)


def _shrink(variance: float) -> float:
    return PRIOR_SD / math.sqrt(variance) if variance > PRIOR_SD**2 else 1.0


_WALK = WALK_SD**2


def _start(published: StepTimes) -> _State:
    values = (published.prefill_base_s, published.prefill_token_s, published.step_base_s, published.step_row_s)
    r0, r1, r2, r3 = (max(value, MIN_COEFFICIENT_S) for value in values)
    v0, v1, v2, v3 = values
    v = PRIOR_SD**2
    certain = ((v, 0.0, 0.0, 0.0), (0.0, v, 0.0, 0.0), (0.0, 0.0, v, 0.0), (0.0, 0.0, 0.0, v))
    return _State(published, (r0, r1, r2, r3), (v0 / r0, v1 / r1, v2 / r2, v3 / r3), certain)


def _typical_s(times: StepTimes) -> float:
    prefill_s = times.prefill_base_s + times.prefill_token_s * TYPICAL_PROMPT_TOKENS
    return prefill_s + (times.step_base_s + times.step_row_s) * TYPICAL_OUTPUT_TOKENS


def _moved(then: StepTimes, now: StepTimes) -> bool:
    if then is now or then == now:
        return False
    before_s, after_s = _typical_s(then), _typical_s(now)
    return not before_s / RESTART_RATIO <= after_s <= before_s * RESTART_RATIO
