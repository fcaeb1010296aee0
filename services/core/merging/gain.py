"""What a new version is expected to gain in quality: updates that promise too little are not worth a rollout."""

from __future__ import annotations

from collections.abc import Mapping


def expected_gain(mix: Mapping[str, float], before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Change of the mean quality over the mix, as far as both versions' qualities are known; None where none is."""
    known = sorted(mix.keys() & before.keys() & after.keys())
    return sum(mix[t] * (after[t] - before[t]) for t in known) if known else None
