"""How long prompts and answers are, in tokens: drawn from datasets where they are there, else from quantiles of them.

Answers count with their end token, which takes a step like any other. Token ids are drawn at random: lengths alone are the datasets'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.model.tokenizer import Tokenizer
from services.tasks.datasets import dataset_names
from services.tasks.errors import SourceError
from services.tasks.sources import open_tasks
from services.tasks.values import TaskItem

ITEMS_PER_TYPE = 400
FIRST_WORD_ID = 3  # below are padding, the end and the unknown token
END_ID = 1

# Quantiles (0, 10, 25, 50, 75, 90, 100 %) of prompt and answer tokens: held-out items of five datasets as `services/tasks` writes their
# prompts, at most 400 of each, counted with a byte-level BPE of 4,096 tokens trained on these texts. A dataset is as likely as another.
QUANTILES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "copa": ((27, 30, 33, 37, 41, 47, 56), (3, 3, 3, 3, 3, 3, 3)),
    "multirc": ((12, 20, 23, 29, 37, 45, 100), (2, 2, 2, 2, 2, 2, 2)),
    "squad": ((9, 15, 18, 22, 27, 32, 58), (2, 3, 4, 6, 9, 14, 49)),
    "wikiqa": ((17, 33, 41, 53, 67, 83, 145), (2, 2, 2, 2, 2, 2, 2)),
    "winogrande": ((27, 32, 35, 38, 42, 48, 63), (2, 2, 2, 2, 3, 4, 7)),
}


@dataclass(frozen=True, slots=True)
class BenchTask:
    task_id: str
    prompt_ids: tuple[int, ...]
    num_output: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Pairs of prompt and answer lengths by dataset, and where they come from."""

    source: str
    pairs: dict[str, tuple[tuple[int, int], ...]]

    def draw(self, num_tasks: int, vocab_size: int, seed: int) -> tuple[BenchTask, ...]:
        """Each of a dataset and one of its items, both evenly."""
        rng = np.random.default_rng(seed)
        tasks = []
        for number in range(num_tasks):
            pairs = self.pairs[sorted(self.pairs)[rng.integers(len(self.pairs))]]
            num_prompt, num_output = pairs[rng.integers(len(pairs))]
            words = rng.integers(FIRST_WORD_ID, vocab_size, size=num_prompt - 1).tolist()
            tasks.append(BenchTask(f"task-{number:04d}", (*words, END_ID), num_output))
        return tuple(tasks)


def built_in(seed: int = 0) -> Lengths:
    """Between the quantiles evenly; prompt and answer independently within a dataset."""
    rng = np.random.default_rng(seed)
    shares = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)

    def drawn(quantiles: Sequence[int]) -> list[int]:
        return [round(float(value)) for value in np.interp(rng.random(ITEMS_PER_TYPE), shares, quantiles)]

    pairs = {name: tuple(zip(drawn(prompt), drawn(answer), strict=True)) for name, (prompt, answer) in QUANTILES.items()}
    return Lengths("quantiles of five datasets, built in", pairs)


def of_data(path: Path, tokenizer_dir: Path) -> Lengths:
    """Of a JSONL file of tasks, or of a directory with a directory for each dataset."""
    tokenizer = Tokenizer(tokenizer_dir, max_prompt_tokens=1 << 20)
    pairs: dict[str, list[tuple[int, int]]] = {}
    for item in _items(path):
        pairs.setdefault(item.task_type, []).append((len(tokenizer.encode(item.prompt)), len(tokenizer.encode(item.references[0]))))
    return Lengths(f"{path.name}, tokenizer of {tokenizer_dir.name}", {name: tuple(found) for name, found in pairs.items()})


def _items(path: Path) -> tuple[TaskItem, ...]:
    if not path.is_dir():
        return open_tasks(str(path)).items
    found = [name for name in dataset_names() if (path / name).is_dir()]
    if not found:
        raise SourceError(f"{path}: no directory named {', '.join(dataset_names())} in it")
    return open_tasks(",".join(f"{name}:{path / name}" for name in found), "heldout", ITEMS_PER_TYPE).items
