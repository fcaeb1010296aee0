"""What the base model shows on calibration items: profiles that mixes are expressed in, quality, lengths. `measure` does so for any model.

Profiles are kept per mean task, so that shares of a mix are shares of tasks. Cached on disk by the content of model and items.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import blake3
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from services.core.merging.values import BaseProfiles, Counts, Frequencies, LayerStatistics, normalised
from services.core.offload.posterior import words
from services.model.checkpoint import BaseModel
from services.model.families.base import ModelShape, MoeModel
from services.model.greedy import greedy
from services.model.manifest import TaskProfile
from services.model.recorder import CountingRecorder, GramRecorder
from services.model.tensor_files import header_problem, write_atomically
from services.model.tokenizer import Tokenizer
from services.tasks.values import TaskItem

Scorer = Callable[[str, Sequence[str]], float]

BATCH_SIZE = 128
MAX_PROMPT_WORDS = 5000  # of each task type that the posterior over task types starts from
_FORMAT = "1"
_MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One item answered."""

    item: TaskItem
    text: str
    num_tokens: int
    score: float


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model did on items, by task type."""

    quality: Mapping[str, float]
    counts: Mapping[str, Counts]
    answers: Mapping[str, tuple[Answer, ...]]

    @property
    def frequencies(self) -> dict[str, Frequencies]:
        return {task_type: normalised(counts) for task_type, counts in self.counts.items()}

    @property
    def profiles(self) -> dict[str, TaskProfile]:
        return {
            task_type: TaskProfile(normalised(counts), counts.sum(axis=1) / len(self.answers[task_type]))
            for task_type, counts in self.counts.items()
        }

    @property
    def tokens_per_task(self) -> dict[str, NDArray[np.float64]]:
        return {task_type: profile.tokens_per_task for task_type, profile in self.profiles.items()}

    @property
    def mean_quality(self) -> float:
        return float(np.mean(list(self.quality.values())))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What is known of a base model before anything is merged."""

    profiles: BaseProfiles
    tokens_per_task: Mapping[str, NDArray[np.float64]]  # (num_layers,) each
    output_tokens: Mapping[str, float]
    prompt_words: Mapping[str, Mapping[str, int]]  # how often a word stands in the prompts
    num_prompts: Mapping[str, int]
    quality: Mapping[str, float]
    max_answer_tokens: int

    def task_profiles(self) -> dict[str, TaskProfile]:
        """Frequencies of the full model, as a manifest would state them."""
        return {t: TaskProfile(self.profiles.frequencies(t), self.tokens_per_task[t]) for t in self.profiles.task_types}


def measure(
    model: MoeModel,
    tokenizer: Tokenizer,
    items: Mapping[str, Sequence[TaskItem]],
    scorers: Mapping[str, Scorer],
    max_tokens: int,
    batch_size: int = BATCH_SIZE,
) -> Measured:
    """Greedy answers to `items`, scored, with what the router chose on the way. `scorers` by task type."""
    recorder = CountingRecorder(model.shape)
    quality: dict[str, float] = {}
    counts: dict[str, Counts] = {}
    answers: dict[str, tuple[Answer, ...]] = {}
    for task_type in sorted(items):
        prompts = [tokenizer.encode(item.prompt) for item in items[task_type]]
        ids = greedy(model, prompts, max_tokens, batch_size, recorder)
        answers[task_type] = tuple(
            _answer(item, tokenizer.decode(tokens), len(tokens), scorers[task_type])
            for item, tokens in zip(items[task_type], ids, strict=True)
        )
        quality[task_type] = float(np.mean([answer.score for answer in answers[task_type]]))
        counts[task_type] = recorder.take()
    return Measured(quality, counts, answers)


def calibrate(
    base: BaseModel, items: Mapping[str, Sequence[TaskItem]], scorers: Mapping[str, Scorer], cache_dir: Path | None = None
) -> Calibration:
    """Run the base model over the items of each task type once; from `cache_dir` where that was done before."""
    path = None if cache_dir is None else cache_dir / f"calibration-{calibration_id(base, items)}.safetensors"
    cached = None if path is None else _read(path, base)
    if cached is not None:
        return cached
    calibration = _calibrate(base, items, scorers)
    if path is not None:
        write_atomically(path, _written(calibration))
    return calibration


def calibration_id(base: BaseModel, items: Mapping[str, Sequence[TaskItem]]) -> str:
    """Content id of the model in its dtype and the items."""
    told = [[t, [[item.item_id, item.prompt, item.references] for item in items[t]]] for t in sorted(items)]
    text = json.dumps([_FORMAT, base.base_id, base.dtype, told], separators=(",", ":"))
    return blake3.blake3(text.encode()).hexdigest(length=8)


def answer_limit(tokenizer: Tokenizer, items: Mapping[str, Sequence[TaskItem]]) -> int:
    """Most tokens that an answer to such items needs, with some room for answers that are wrong."""
    texts = [reference for of_type in items.values() for item in of_type for reference in item.references if reference.strip()]
    return 2 + max((len(tokenizer.encode(text)) for text in texts), default=30)


def _calibrate(base: BaseModel, items: Mapping[str, Sequence[TaskItem]], scorers: Mapping[str, Scorer]) -> Calibration:
    recorder = GramRecorder(base.model.shape)
    max_tokens = answer_limit(base.tokenizer, items)
    statistics: dict[str, tuple[LayerStatistics, ...]] = {}
    quality: dict[str, float] = {}
    output_tokens: dict[str, float] = {}
    prompt_words: dict[str, dict[str, int]] = {}
    for task_type in sorted(items):
        of_type = items[task_type]
        ids = greedy(base.model, [base.tokenizer.encode(item.prompt) for item in of_type], max_tokens, BATCH_SIZE, recorder)
        statistics[task_type] = recorder.take(len(of_type))
        output_tokens[task_type] = float(np.mean([len(tokens) for tokens in ids]))
        scored = [_answer(item, base.tokenizer.decode(t), len(t), scorers[task_type]) for item, t in zip(of_type, ids, strict=True)]
        quality[task_type] = float(np.mean([answer.score for answer in scored]))
        seen = Counter(word for item in of_type for word in words(item.prompt))
        prompt_words[task_type] = dict(sorted(seen.most_common(MAX_PROMPT_WORDS)))
    return Calibration(
        BaseProfiles(base.base_id, tuple(sorted(items)), statistics),
        {t: np.array([layer.counts.sum() for layer in layers]) for t, layers in statistics.items()},
        output_tokens,
        prompt_words,
        {t: len(of_type) for t, of_type in sorted(items.items())},
        quality,
        max_tokens,
    )


def _answer(item: TaskItem, text: str, num_tokens: int, scorer: Scorer) -> Answer:
    return Answer(item, text, num_tokens, scorer(text, item.references))


def _written(calibration: Calibration) -> bytes:
    arrays = {}
    for task_type, layers in calibration.profiles.statistics.items():
        for number, layer in enumerate(layers):
            arrays[f"{number}.counts.{task_type}"] = layer.counts
            arrays[f"{number}.gram.{task_type}"] = layer.gram
    told = {
        "output_tokens": calibration.output_tokens,
        "prompt_words": calibration.prompt_words,
        "num_prompts": calibration.num_prompts,
        "quality": calibration.quality,
        "max_answer_tokens": calibration.max_answer_tokens,
    }
    arrays["told"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
    return bytes(save(arrays))


def _read(path: Path, base: BaseModel) -> Calibration | None:
    """None where the file is absent or not what it should be: it is then made again."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    if header_problem(data[: 8 + _MAX_HEADER_BYTES], len(data), _MAX_HEADER_BYTES) is not None:
        return None
    try:
        arrays = load(data)
        told = json.loads(arrays["told"].tobytes())
        statistics = {t: _stored_layers(arrays, t, base.model.shape) for t in sorted(told["quality"])}
    except (SafetensorError, KeyError, ValueError):
        return None
    return Calibration(
        BaseProfiles(base.base_id, tuple(statistics), statistics),
        {t: np.array([layer.counts.sum() for layer in layers]) for t, layers in statistics.items()},
        told["output_tokens"],
        told["prompt_words"],
        told["num_prompts"],
        told["quality"],
        told["max_answer_tokens"],
    )


def _stored_layers(arrays: Mapping[str, NDArray[np.float64]], task_type: str, shape: ModelShape) -> tuple[LayerStatistics, ...]:
    return tuple(
        LayerStatistics(arrays[f"{number}.counts.{task_type}"], arrays[f"{number}.gram.{task_type}"]) for number in range(len(shape.layers))
    )
