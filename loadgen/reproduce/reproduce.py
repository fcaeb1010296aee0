"""Runs experiments one after another into a folder: what stands there of the same inputs is kept, the rest is computed and written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from loadgen.experiments import experiment, names
from loadgen.reproduce.context import Context
from loadgen.reproduce.page import page
from loadgen.reproduce.store import SHARED, Store, sources
from loadgen.reproduce.write import document, write_data, write_plots, written

Tell = Callable[[str, int, int, float | None], None]  # experiment, runs done, of how many, seconds that the others may take


def reproduce(
    chosen: Sequence[str], out: Path, tell: Tell, *, num_seeds: int = 10, jobs: int = 1, quick: bool = False
) -> list[dict[str, Any]]:
    """The documents of the experiments, in their order. Each is on disk when the next begins. The page shows these and whatever else
    stands in the folder of the same code and seeds."""
    documents, current = [], ""

    def told(done: int, total: int, left_s: float | None) -> None:
        tell(current, done, total, left_s)

    with Store(out / "runs.jsonl") as store, Context(store, told, num_seeds=num_seeds, jobs=jobs, quick=quick) as context:
        for current in chosen:
            key = _key(current, context)
            kept = written(out / current, key)
            if kept is None:
                made = experiment(current)
                result = made.run(context)
                kept = document(current, made.title, made.about, key, result)
                write_plots(out / current, result.plots)
                write_data(out / current, kept, result)
                _write_page(out, context)
            documents.append(kept)
        _write_page(out, context)
    return documents


def _write_page(out: Path, context: Context) -> None:
    stand = [made for name in names() if (made := written(out / name, _key(name, context))) is not None]
    (out / "index.html").write_text(page(stand, out, _setup(context), quick=context.quick), encoding="utf-8")


def _setup(context: Context) -> dict[str, str]:
    return {
        "seeds": f"{len(context.seeds)} (half of them in sweeps)",
        "size": "quick: short runs, to see that it works" if context.quick else "full",
        "model": "the demo model as measured (loadgen/scenarios/profiles); others where a table says so",
        "simulator": "virtual time, through the engines that run live (loadgen/simulator/README.md)",
    }


def _key(name: str, context: Context) -> str:
    code = sources(*SHARED, "loadgen/reproduce", "loadgen/experiments")
    return hashlib.sha256(f"{name}\0{code}\0{context.seeds}\0{context.quick}".encode()).hexdigest()[:20]
