"""What task type a prompt probably is of, when the user did not say: naive Bayes over the words of calibration prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

MAX_CHARS = 4096  # of a prompt that are looked at
SMOOTHING = 0.5
MIN_SHARE = 1e-3  # smaller shares are left out: they move no estimate
_WORD = re.compile(r"\w+|[^\w\s]")


def words(prompt: str) -> list[str]:
    """Lower-case words and punctuation marks: what calibration counts and what the posterior looks up."""
    return _WORD.findall(prompt.lower())


class PromptPosterior:
    """`words_by_type`: how often each word stands in the calibration prompts of each task type."""

    def __init__(self, words_by_type: Mapping[str, Mapping[str, int]]) -> None:
        self.task_types = tuple(sorted(words_by_type))
        vocabulary = set().union(*words_by_type.values()) if words_by_type else set()
        self._log_likelihood: dict[str, dict[str, float]] = {}
        self._log_unseen: dict[str, float] = {}
        for task_type in self.task_types:
            counts = words_by_type[task_type]
            total = sum(counts.values()) + SMOOTHING * (len(vocabulary) + 1)
            self._log_likelihood[task_type] = {word: math.log((count + SMOOTHING) / total) for word, count in counts.items()}
            self._log_unseen[task_type] = math.log(SMOOTHING / total)

    def posterior(self, prompt: str) -> dict[str, float]:
        """Probability of each task type; empty when none is known."""
        if not self.task_types:
            return {}
        seen = words(prompt[:MAX_CHARS])
        scores = {t: sum(self._log_likelihood[t].get(word, self._log_unseen[t]) for word in seen) for t in self.task_types}
        highest = max(scores.values())
        weights = {t: math.exp(score - highest) for t, score in scores.items()}
        total = sum(weights.values())
        shares = {t: weight / total for t, weight in weights.items() if weight / total >= MIN_SHARE}
        kept = sum(shares.values())
        return {t: share / kept for t, share in shares.items()}
