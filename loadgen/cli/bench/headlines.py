"""Figures of benchmarks that have a target: what `moedge bench all` sets side by side. Each benchmark's file names its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Figures = Mapping[str, Any]  # what a benchmark prints with --json


class Headline(NamedTuple):
    """A figure with its target: at most, or at least, so much."""

    what: str
    value: float
    target: float
    at_most: bool
    told: str  # how such a figure is written

    @property
    def is_met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    @property
    def row(self) -> tuple[str, str, str, str]:
        bound = "at most" if self.at_most else "at least"
        return self.what, self.told.format(self.value), f"{bound} {self.told.format(self.target)}", "met" if self.is_met else "missed"


Headlines = Callable[[Figures], Iterable[Headline]]
