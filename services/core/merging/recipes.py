"""Named choices of merge method, allocation and grouping: the paper's and the product's own. Evidence for the latter: README.md here."""

from __future__ import annotations

from dataclasses import dataclass

BEST = "best"  # the builder tries each of `CANDIDATES` and keeps what scores best on calibration items of the mix
CANDIDATES = ("dominant", "m-smoe")
FITTED = "fitted"  # no merge: each expert in the bits, hidden units and rank that the traffic needs of it (`fitted.py`)


@dataclass(frozen=True, slots=True)
class Recipe:
    method: str
    allocation: str
    grouping: str = "router-logits"


PAPER = Recipe("m-smoe", "mc-smoe")
PRODUCT = Recipe(BEST, "whole-tasks")
