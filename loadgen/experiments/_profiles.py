"""The measured profiles that there are, as documents: what each model scores and which experts its routers choose."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from loadgen.simulator.measured import unpacked
from loadgen.simulator.scenario import PROFILES
from services.core.merging.values import Frequencies, normalised

FIRST = "demo"


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    task_types: tuple[str, ...]
    document: dict[str, Any]

    def frequencies(self, task_type: str) -> Frequencies:
        """Of the unmerged model, (num_layers, num_experts)."""
        shape = (int(self.document["num_layers"]), int(self.document["num_experts"]))
        return normalised(unpacked(self.document["full_counts"][task_type], shape))

    def shares(self) -> tuple[float, ...]:
        """Memory shares that were measured, ascending."""
        return tuple(sorted({float(version["share"]) for version in self.document["versions"]}))

    def merged_for(self, task_type: str, share: float) -> dict[str, float]:
        """Scores by task type of the model merged for this task type alone."""
        found = [v for v in self.document["versions"] if v["mix"] == {task_type: 1.0} and v["share"] == share]
        return {t: float(found[0]["quality"][t]) for t in self.task_types}


def profiles() -> tuple[Profile, ...]:
    """The demo model's first."""
    paths = sorted(PROFILES.glob("*.json"), key=lambda path: (path.stem != FIRST, path.stem))
    documents = [(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return tuple(Profile(name, tuple(sorted(told["task_types"])), told) for name, told in documents)
