"""Measures a model for the simulator: merged versions of many mixes and memory shares, their quality and what their routers show; and
the unmerged model at few bits (`quantising.py`).

Needs torch. Run as `python -m loadgen.simulator.measuring --out FILE`; the file is read by `measured.py`.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.cli.builders import open_builder
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.simulator.measured import FORMAT, packed, rounded_quality
from loadgen.simulator.quantising import unmerged_rows
from services.model.build import Builder, BuildOptions
from services.model.calibration import Measured, answer_limit, measure
from services.model.families.base import MoeModel
from services.model.manifest import TaskProfile
from services.model.profile import service_times, share_bytes
from services.tasks.scoring import SCORERS
from services.tasks.sources import open_tasks
from services.tasks.values import TaskItem, TaskSet

SHARES = (0.22, 0.30, 0.37)  # of all experts: the demo's three edges
LEADING = 0.8
NUM_LENGTHS = 64  # tasks of each type whose lengths are kept


def mixes(task_types: Sequence[str]) -> Iterator[dict[str, float]]:
    """Each type alone, each leading with 80 %, each pair, and all alike."""
    num = len(task_types)
    yield from ({t: 1.0} for t in task_types)
    yield from ({t: LEADING if t == leader else (1 - LEADING) / (num - 1) for t in task_types} for leader in task_types)
    yield from ({first: 0.5, second: 0.5} for first, second in itertools.combinations(task_types, 2))
    yield dict.fromkeys(task_types, 1 / num)


def measured_profile(builder: Builder, scored: TaskSet, shares: Sequence[float], items_per_type: int) -> dict[str, Any]:
    """One JSON document; quality on items that calibration never saw, beside the one that manifests state."""
    base = builder.base
    items, scores = _scoring(builder, scored, items_per_type)
    full = scores(base.model)
    prompts = {t: [base.tokenizer.encode(item.prompt) for item in items[t]] for t in items}
    versions = []
    for share in shares:
        budget_bytes = share_bytes(builder, share)
        for mix in mixes(scored.task_types):
            manifest = builder.build(mix, budget_bytes, BuildOptions())
            versions.append(
                {
                    "share": share,
                    "mix": dict(manifest.mix),
                    "model_bytes": manifest.model_bytes,
                    "experts_kept": manifest.experts_kept,
                    "build_s": round(sum(s for phase, s in manifest.durations_s.items() if phase != "prepare"), 3),
                    "stated_quality": rounded_quality(manifest.quality),
                    "quality": rounded_quality(scores(builder.model(manifest).model).quality),
                    "counts": _counts(manifest.profiles),
                }
            )
            print(f"{len(versions)}: {share:.0%} {mix} -> {versions[-1]['quality']}", flush=True)
    return {
        "format": FORMAT,
        "base_model": base.base_id,
        "dtype": base.dtype,
        "made_by": f"python -m loadgen.simulator.measuring, {items_per_type} held-out items of each type of {scored.name}, one thread",
        "task_types": list(scored.task_types),
        "num_layers": len(base.model.shape.layers),
        "num_experts": base.model.shape.layers[0].num_experts,
        "full_bytes": base.full_bytes,
        "step_times": _step_times(builder, [of_type[0] for of_type in prompts.values()]),
        "lengths": {
            t: [
                [len(item.prompt.encode()), len(prompt), answer.num_tokens]
                for item, prompt, answer in list(zip(items[t], prompts[t], full.answers[t], strict=True))[:NUM_LENGTHS]
            ]
            for t in items
        },
        "full_quality": rounded_quality(full.quality),
        "full_counts": _counts(full.profiles),
        "versions": versions,
        "unmerged": unmerged_rows(base, full, [share_bytes(builder, share) for share in shares], scores, _tell),
    }


def extended(document: dict[str, Any], builder: Builder, scored: TaskSet, items_per_type: int) -> dict[str, Any]:
    """A profile with the unmerged model's rows measured again, in a dtype of their own; step times, lengths and versions stay."""
    base = builder.base
    if document["base_model"] != base.base_id:
        raise ValueError(f"--out is a profile of {document['base_model']}, --model is {base.base_id}: give the model that it is of")
    _, scores = _scoring(builder, scored, items_per_type)
    budgets = [share_bytes(builder, share) for share in sorted({row["share"] for row in document["versions"]})]
    return {**document, "unmerged": unmerged_rows(base, scores(base.model), budgets, scores, _tell)}


def _scoring(
    builder: Builder, scored: TaskSet, items_per_type: int
) -> tuple[Mapping[str, Sequence[TaskItem]], Callable[[MoeModel], Measured]]:
    base = builder.base
    items = {t: scored.of_type(t)[:items_per_type] for t in scored.task_types}
    scorers = {t: SCORERS[name] for t, name in scored.scorers.items()}
    limit = answer_limit(base.tokenizer, items)
    return items, lambda model: measure(model, base.tokenizer, items, scorers, limit)


def _tell(what: str) -> None:
    print(what, flush=True)


def _step_times(builder: Builder, prompts: Sequence[Sequence[int]]) -> dict[str, float]:
    """Straight lines through the medians: prefill against tokens read, a step against the rows in it."""
    times = service_times(builder.base.model, prompts)
    sizes = sorted(times.step_s)
    num_tokens = [sum(len(prompts[n % len(prompts)]) for n in range(size)) for size in sizes]
    token_s, prefill_base_s = np.polyfit(num_tokens, [times.prefill_s[size] for size in sizes], 1)
    row_s, step_base_s = np.polyfit(sizes, [times.step_s[size] for size in sizes], 1)
    fitted = {"step_base_s": step_base_s, "step_row_s": row_s, "prefill_base_s": prefill_base_s, "prefill_token_s": token_s}
    return {name: round(max(float(value), 0.0), 7) for name, value in fitted.items()}


def _counts(profiles: Mapping[str, TaskProfile]) -> dict[str, str]:
    return {t: packed(profile.counts_per_task) for t, profile in sorted(profiles.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument("--model", help="checkpoint directory or hub id; the demo model of the checkout without it")
    parser.add_argument("--tasks", help="task source, as for `moedge profile`")
    parser.add_argument("--items", type=int, default=100, help="scored items of each task type")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="shares of all experts that versions keep")
    parser.add_argument("--cache", type=Path, help="folder for builds")
    parser.add_argument("--extend", action="store_true", help="measure only the unmerged model at few bits, and add that to --out")
    given = parser.parse_args()
    source = tasks_or_toy(given.tasks, given.model)
    builder = open_builder(model_or_demo(given.model), open_tasks(source, "calibration"), given.dtype, "cpu", 1, given.cache)
    scored = open_tasks(source, "heldout")
    if given.extend:
        document = extended(json.loads(given.out.read_text(encoding="utf-8")), builder, scored, given.items)
    else:
        document = measured_profile(builder, scored, given.shares, given.items)
    given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
