"""Measures a demo checkpoint against what the demonstration needs of it: scores, controls, quantisation curve, merges for each family.

Greedy generation on held-out prompts throughout; merges are planned from calibration prompts only, and nothing is trained here.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from services.core.merging.plan import make_plan
from services.core.merging.values import BaseProfiles
from services.model.alignment import Aligned, align
from services.model.calibration import answer_limit, calibrate, measure
from services.model.checkpoint import BaseModel, read_base
from services.model.families.base import MoeModel
from services.model.memory import budget_for, expert_bytes, unique_bytes
from services.model.merging import merged_experts
from services.model.quantise import quantised, zeroed
from services.tasks.scoring import SCORERS
from services.tasks.toy import DEFAULT_NUM_FACTS, PHRASINGS, toy_world
from services.tasks.values import TaskItem, TaskSet

FAMILIES = tuple(sorted(phrasing.task_type for phrasing in PHRASINGS))
KEPT_SHARE = 0.25
BITS = (8, 6, 5, 4, 3, 2, 1)


def items_of(tasks: TaskSet, num_items: int, seed: int) -> dict[str, list[TaskItem]]:
    """The first `num_items` of each family in a shuffled order."""
    rng = np.random.default_rng(seed)
    chosen = {}
    for family in FAMILIES:
        of_family = tasks.of_type(family)
        chosen[family] = [of_family[index] for index in rng.permutation(len(of_family))[:num_items]]
    return chosen


class Check:
    """One checkpoint with the prompts it is measured on."""

    def __init__(self, base: BaseModel, scored: Mapping[str, Sequence[TaskItem]], calibration: Mapping[str, Sequence[TaskItem]]) -> None:
        self._base = base
        self._scored = scored
        self._calibration = calibration
        self._scorers = {phrasing.task_type: SCORERS[phrasing.scorer] for phrasing in PHRASINGS}
        self._max_tokens = answer_limit(base.tokenizer, scored)

    def scores(self, model: MoeModel) -> dict[str, float]:
        """Score of each family, and their mean."""
        measured = measure(model, self._base.tokenizer, self._scored, self._scorers, self._max_tokens, batch_size=512)
        return {**measured.quality, "mean": measured.mean_quality}

    def profiles(self) -> BaseProfiles:
        return calibrate(self._base, self._calibration, self._scorers).profiles

    def merged(self, family: str, profiles: BaseProfiles, aligned: Aligned) -> MoeModel:
        """Merged for one family to a quarter of the experts: no recovery."""
        model = self._base.model
        num_kept = round(KEPT_SHARE * sum(stack.num_kept for stack in model.experts))
        non_expert_bytes = unique_bytes(model) - sum(stack.num_bytes() for stack in model.experts)
        budget = budget_for(model, non_expert_bytes + num_kept * expert_bytes(model.experts[0]))
        plan = make_plan(profiles, {family: 1.0}, budget)
        return model.with_experts(merged_experts(self._base, aligned, plan))


def distances(profiles: BaseProfiles) -> list[float]:
    """Total variation between two families' expert use, the mean over pairs, by layer."""
    frequencies = [profiles.frequencies(family) for family in FAMILIES]
    pairs = [0.5 * np.abs(one - two).sum(axis=1) for index, one in enumerate(frequencies) for two in frequencies[:index]]
    return [round(float(value), 3) for value in np.mean(pairs, axis=0)]


def report(directory: Path, num_items: int, num_facts: int) -> dict[str, object]:
    world = toy_world(0, num_facts)
    base = read_base(directory)
    check = Check(base, items_of(world.heldout, num_items, 1), items_of(world.calibration, num_items, 2))
    started_s = time.monotonic()
    table = {"full": check.scores(base.model), "zero experts": check.scores(zeroed(base.model))}
    print_rows(table)
    for bits in BITS:
        table[f"int{bits}"] = check.scores(quantised(base.model, bits))
        print_rows({f"int{bits}": table[f"int{bits}"]})
    profiles, aligned = check.profiles(), align(base)
    for family in FAMILIES:
        row = check.scores(check.merged(family, profiles, aligned))
        table[f"for {family}"] = row
        print_rows({f"for {family}": row})
    return {
        "scores": table,
        "experts_used": {family: (profiles.frequencies(family) > 0.001).sum(axis=1).tolist() for family in FAMILIES},
        "distance": distances(profiles),
        "requirements": requirements(table),
        "seconds": time.monotonic() - started_s,
    }


def requirements(table: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, str, bool]]:
    """Measured value, bound and whether it holds, for each figure that the demonstration rests on."""
    full = table["full"]
    lowest = min(full[family] for family in FAMILIES)
    own = min(table[f"for {family}"][family] / full[family] for family in FAMILIES)
    others = max(
        sum(table[f"for {family}"][other] for other in FAMILIES if other != family) / sum(full[o] for o in FAMILIES if o != family)
        for family in FAMILIES
    )
    zero, int3 = table["zero experts"]["mean"], table["int3"]["mean"] / full["mean"]
    return {
        "full model, lowest family": (lowest, ">= 0.95", lowest >= 0.95),
        "zero experts, mean": (zero, "<= 0.30", zero <= 0.30),
        "int3 / full": (int3, "<= 0.60", int3 <= 0.60),
        "merged for a family, on it / full, lowest": (own, ">= 0.85", own >= 0.85),
        "merged for a family, on the others / full, highest": (others, "<= 0.60", others <= 0.60),
    }


def print_rows(table: Mapping[str, Mapping[str, float]]) -> None:
    for name, row in table.items():
        print(f"{name:16s}" + "".join(f"{family:>12s} {row[family]:.3f}" for family in (*FAMILIES, "mean")), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path(__file__).parent)
    parser.add_argument("--items", type=int, default=400, help="held-out prompts of each family")
    parser.add_argument("--num-facts", type=int, default=DEFAULT_NUM_FACTS)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = report(arguments.directory, arguments.items, arguments.num_facts)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, (value, bound, holds) in requirements(figures["scores"]).items():  # type: ignore[arg-type]
        print(f"{'ok  ' if holds else 'MISS'} {name}: {value:.3f} ({bound})")
    print("distance by layer", figures["distance"])
    print("experts used", figures["experts_used"])


if __name__ == "__main__":
    main()
