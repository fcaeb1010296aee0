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
Ten = tuple[float, float, float, float, float, float, float, float, float, float]


@dataclass(slots=True)
class _State:
    published: StepTimes
    reference: Four  # seconds that one unit of each coefficient stands for
    coefficients: Four  # in units of `reference`, none below 0
    covariance: Ten  # rows of the upper triangle


class StepTimePredictor:
    """Four numbers at a time are too few for arrays to pay, and for calls: written out, a task costs a fifth of what it does in arrays."""

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
        c0, c1, c2, c3 = state.coefficients
        a, b, c, d, e, f, g, h, i, j = state.covariance
        x0, x1, x2, x3 = r0, prompt_tokens * r1, output_tokens * r2, output_tokens * rows * r3
        predicted_s = x0 * c0 + x1 * c1 + x2 * c2 + x3 * c3
        if predicted_s < 1e-6:
            predicted_s = 1e-6
        innovation = inference_s / predicted_s - 1.0
        if innovation > MAX_INNOVATION:
            innovation = MAX_INNOVATION
        x0, x1, x2, x3 = x0 / predicted_s, x1 / predicted_s, x2 / predicted_s, x3 / predicted_s  # errors are relative
        w0 = a * x0 + b * x1 + c * x2 + d * x3
        w1 = b * x0 + e * x1 + f * x2 + g * x3
        w2 = c * x0 + f * x1 + h * x2 + i * x3
        w3 = d * x0 + g * x1 + i * x2 + j * x3
        certainty = 1.0 / (_NOISE + w0 * x0 + w1 * x1 + w2 * x2 + w3 * x3)
        step = innovation * certainty
        c0, c1, c2, c3 = c0 + w0 * step, c1 + w1 * step, c2 + w2 * step, c3 + w3 * step
        state.coefficients = (c0 if c0 > 0.0 else 0.0, c1 if c1 > 0.0 else 0.0, c2 if c2 > 0.0 else 0.0, c3 if c3 > 0.0 else 0.0)
        g0, g1, g2, g3 = w0 * certainty, w1 * certainty, w2 * certainty, w3 * certainty
        a, b, c, d = a - w0 * g0 + _WALK, b - w0 * g1, c - w0 * g2, d - w0 * g3
        e, f, g = e - w1 * g1 + _WALK, f - w1 * g2, g - w1 * g3
        h, i, j = h - w2 * g2 + _WALK, i - w2 * g3, j - w3 * g3 + _WALK
        if a > _PRIOR or e > _PRIOR or h > _PRIOR or j > _PRIOR:
            state.covariance = _bounded(a, b, c, d, e, f, g, h, i, j)
        else:
            state.covariance = (a, b, c, d, e, f, g, h, i, j)


def _bounded(
    a: float, b: float, c: float, d: float, e: float, f: float, g: float, h: float, i: float, j: float
) -> Ten:  # fmt: skip
    """No coefficient less certain than at the start."""
    s0, s1, s2, s3 = _shrink(a), _shrink(e), _shrink(h), _shrink(j)
    b, c, d, f, g, i = b * s0 * s1, c * s0 * s2, d * s0 * s3, f * s1 * s2, g * s1 * s3, i * s2 * s3
    return a * s0 * s0, b, c, d, e * s1 * s1, f, g, h * s2 * s2, i, j * s3 * s3


def _shrink(variance: float) -> float:
    return PRIOR_SD / math.sqrt(variance) if variance > _PRIOR else 1.0


_PRIOR, _NOISE, _WALK = PRIOR_SD**2, NOISE_SD**2, WALK_SD**2


def _start(published: StepTimes) -> _State:
    values = (published.prefill_base_s, published.prefill_token_s, published.step_base_s, published.step_row_s)
    r0, r1, r2, r3 = (max(value, MIN_COEFFICIENT_S) for value in values)
    v0, v1, v2, v3 = values
    certain = (_PRIOR, 0.0, 0.0, 0.0, _PRIOR, 0.0, 0.0, _PRIOR, 0.0, _PRIOR)
    return _State(published, (r0, r1, r2, r3), (v0 / r0, v1 / r1, v2 / r2, v3 / r3), certain)


def _typical_s(times: StepTimes) -> float:
    prefill_s = times.prefill_base_s + times.prefill_token_s * TYPICAL_PROMPT_TOKENS
    return prefill_s + (times.step_base_s + times.step_row_s) * TYPICAL_OUTPUT_TOKENS


def _moved(then: StepTimes, now: StepTimes) -> bool:
    if then is now or then == now:
        return False
    before_s, after_s = _typical_s(then), _typical_s(now)
    return not before_s / RESTART_RATIO <= after_s <= before_s * RESTART_RATIO
