"""Predicts how many tokens an answer will have: a moving average by task type (paper, Sec. IV: "moving average of recent queries").

Knows nothing of the prompt beyond its task type.
"""

from __future__ import annotations

from collections.abc import Mapping

DEFAULT_TOKENS = 16.0
PRIOR_TASKS = 10.0  # how many observed answers a profile's mean counts for
MIN_WEIGHT = 0.05  # an average over about the last twenty answers, once that many were seen


class OutputLengthPredictor:
    """EWMA of answer lengths by task type, starting from the base model's profiles."""

    def __init__(self, prior: Mapping[str, float] | None = None, *, default_tokens: float = DEFAULT_TOKENS) -> None:
        self._default = default_tokens
        self._mean: dict[str, float] = dict(prior or {})
        self._num_observed: dict[str, int] = {}

    def learn_prior(self, prior: Mapping[str, float]) -> None:
        """Profiles that arrived late: they count for the task types of which no answer was seen yet."""
        for task_type, tokens in prior.items():
            if task_type not in self._num_observed:
                self._mean[task_type] = float(tokens)

    def tokens(self, posterior: Mapping[str, float], max_tokens: int) -> float:
        """Predicted output tokens, at least one and at most `max_tokens`."""
        expected = sum(share * min(self._mean.get(task_type, self._default), max_tokens) for task_type, share in posterior.items())
        return min(max(expected or min(self._default, max_tokens), 1.0), float(max(max_tokens, 1)))

    @property
    def usual_tokens(self) -> float:
        """Of a task about which nothing is known."""
        return sum(self._mean.values()) / len(self._mean) if self._mean else self._default

    def observe(self, task_type: str, output_tokens: int, max_tokens: int) -> None:
        """An answer cut off by `max_tokens` only says that it would have been at least that long."""
        mean = self._mean.get(task_type)
        if mean is not None and output_tokens >= max_tokens and output_tokens < mean:
            return
        num_observed = self._num_observed.get(task_type, 0)
        self._num_observed[task_type] = num_observed + 1
        if mean is None:
            self._mean[task_type] = float(output_tokens)
            return
        weight = max(MIN_WEIGHT, 1.0 / (num_observed + 1 + PRIOR_TASKS))
        self._mean[task_type] = mean + weight * (output_tokens - mean)
