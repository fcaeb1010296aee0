"""Corrects the step times an edge publishes by the inference times this broker observes: recursive least squares, one state per edge.

The four coefficients of `StepTimes` are scaled by their published values, so that each starts at one and errors are relative.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.core.offload.values import StepTimes

MIN_COEFFICIENT_S = 1e-6  # lets a coefficient published as zero be learnt
PRIOR_SD = 0.5  # of each scaled coefficient: published values are right within about half
NOISE_SD = 0.2  # of an observed inference time, relative
WALK_SD = 0.02  # by which a coefficient may move from task to task: an edge gets slower or faster while serving
MAX_INNOVATION = 2.0  # a hiccup counts at most as three times the predicted time
RESTART_RATIO = 1.4  # published values that moved further than this replace what was learnt
TYPICAL_PROMPT_TOKENS, TYPICAL_OUTPUT_TOKENS = 32, 8

_WALK = WALK_SD**2 * np.eye(4)


@dataclass(slots=True)
class _State:
    published: StepTimes
    reference: NDArray[np.float64]  # (4,) seconds that one unit of each coefficient stands for
    coefficients: NDArray[np.float64]  # (4,) in units of `reference`
    covariance: NDArray[np.float64]  # (4, 4)


class StepTimePredictor:
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
        prefill_base_s, prefill_token_s, step_base_s, step_row_s = (np.maximum(state.coefficients, 0.0) * state.reference).tolist()
        return StepTimes(step_base_s, step_row_s, prefill_base_s, prefill_token_s)

    def observe(self, edge_id: str, published: StepTimes, prompt_tokens: int, output_tokens: int, rows: float, inference_s: float) -> None:
        """`rows`: tasks in the batch while this one ran, averaged."""
        if inference_s <= 0.0:
            return
        state = self._states.get(edge_id)
        if state is None:
            state = self._states[edge_id] = _start(published)
        features = np.array([1.0, prompt_tokens, output_tokens, output_tokens * rows]) * state.reference
        predicted_s = max(float(features.dot(np.maximum(state.coefficients, 0.0))), 1e-6)
        relative = features / predicted_s
        innovation = min(inference_s / predicted_s - 1.0, MAX_INNOVATION)
        row = relative.dot(state.covariance)
        gain = state.covariance.dot(relative) / (NOISE_SD**2 + row.dot(relative))
        state.coefficients = np.maximum(state.coefficients + gain * innovation, 0.0)
        covariance = state.covariance - gain[:, None] * row + _WALK
        shrink = np.sqrt(np.minimum(1.0, PRIOR_SD**2 / np.maximum(covariance.diagonal(), 1e-12)))
        state.covariance = covariance * (shrink[:, None] * shrink)


def _start(published: StepTimes) -> _State:
    values = np.array([published.prefill_base_s, published.prefill_token_s, published.step_base_s, published.step_row_s])
    reference = values.clip(min=MIN_COEFFICIENT_S)
    return _State(published, reference, values / reference, PRIOR_SD**2 * np.eye(4))


def _typical_s(times: StepTimes) -> float:
    prefill_s = times.prefill_base_s + times.prefill_token_s * TYPICAL_PROMPT_TOKENS
    return prefill_s + (times.step_base_s + times.step_row_s) * TYPICAL_OUTPUT_TOKENS


def _moved(then: StepTimes, now: StepTimes) -> bool:
    if then is now or then == now:
        return False
    before_s, after_s = _typical_s(then), _typical_s(now)
    return not before_s / RESTART_RATIO <= after_s <= before_s * RESTART_RATIO
