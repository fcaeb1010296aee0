"""Predicts the quality of a model version on a task type: its manifest's calibration score, corrected by the scores users send back.

A Beta-like shrinkage: the manifest counts as `PRIOR_SCORES` scores, every observed score as one. Versions are immutable, so no score ages.
"""

from __future__ import annotations

from collections.abc import Mapping

PRIOR_SCORES = 20.0
UNKNOWN_QUALITY = 0.5


class QualityPredictor:
    def __init__(self, prior_scores: float = PRIOR_SCORES) -> None:
        self._prior_scores = prior_scores
        self._scores: dict[tuple[str, str], tuple[float, int]] = {}  # (version, task type) -> sum, count

    def quality(self, version: str, task_type: str, manifest: Mapping[str, float]) -> float:
        """Expected score in [0, 1]. A task type that the manifest does not know gets the mean of those it does."""
        prior = manifest.get(task_type)
        if prior is None:
            prior = sum(manifest.values()) / len(manifest) if manifest else UNKNOWN_QUALITY
        total, count = self._scores.get((version, task_type), (0.0, 0))
        return (self._prior_scores * prior + total) / (self._prior_scores + count)

    def observe(self, version: str, task_type: str, score: float) -> None:
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"score is {score}: send a number from 0 to 1")
        total, count = self._scores.get((version, task_type), (0.0, 0))
        self._scores[(version, task_type)] = (total + score, count + 1)
