"""A short training of merged experts towards the full model's answers, on calibration items only. Routers and all else stay frozen.

Loss as in M-SMoE (Li et al., ICLR 2024): cross entropy on the reference plus a share of the Kullback-Leibler divergence to the full model
at temperature 2. The seed fixes every choice.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from services.model.families.base import ExpertStack, ModelShape, MoeModel
from services.model.tokenizer import Tokenizer
from services.tasks.values import TaskItem

_IGNORED = -100


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids of a prompt and of the answer it should get, both ended."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How experts are trained; `steps` comes with the plan."""

    steps: int
    batch_size: int = 256
    learning_rate: float = 3e-3
    divergence_weight: float = 0.2
    temperature: float = 2.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    steps: int
    seconds: float
    first_loss: float
    last_loss: float


def examples(tokenizer: Tokenizer, shape: ModelShape, items: Sequence[TaskItem]) -> list[Example]:
    """Items with their first reference as the target."""
    if not shape.continues_prompt:
        return [Example(tuple(tokenizer.encode(item.prompt)), tuple(tokenizer.encode(item.references[0]))) for item in items]
    cut = [tokenizer.encode_continued(item.prompt, item.references[0]) for item in items]
    return [Example(tuple(prompt), (*answer, shape.eos_token_ids[0])) for prompt, answer in cut]


def recover(
    model: MoeModel,
    teacher: MoeModel,
    examples_by_type: Mapping[str, Sequence[Example]],
    mix: Mapping[str, float],
    options: RecoveryOptions,
) -> tuple[MoeModel, RecoveryReport]:
    """A copy of `model` with its experts trained on the mix; examples are drawn by task type shares."""
    start_at_s = time.perf_counter()
    pool, shares = _pool(examples_by_type, mix)
    if options.steps == 0 or not pool:
        return model, RecoveryReport(0, 0.0, 0.0, 0.0)
    rng = np.random.default_rng(options.seed)
    trained = [
        ExpertStack({name: weight.detach().float().clone() for name, weight in stack.weights.items()}, stack.index_map)
        for stack in model.experts
    ]
    weights = [weight.requires_grad_(True) for stack in trained for weight in stack.weights.values()]
    student = model.with_experts(trained)
    optimiser = torch.optim.AdamW(weights, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    losses = []
    for step in range(options.steps):
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * (1 - step / options.steps)
        rows = rng.choice(len(pool), size=min(options.batch_size, len(pool)), replace=False, p=shares)
        loss = _loss(student, teacher, [pool[row] for row in sorted(rows.tolist())], options)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(loss.detach()))
    stored = [_as_stored(new, old) for new, old in zip(trained, model.experts, strict=True)]
    report = RecoveryReport(options.steps, time.perf_counter() - start_at_s, losses[0], losses[-1])
    return model.with_experts(stored), report


def _pool(examples_by_type: Mapping[str, Sequence[Example]], mix: Mapping[str, float]) -> tuple[list[Example], np.ndarray]:
    """All examples of the mix's task types, with the probability of each."""
    pool: list[Example] = []
    shares: list[float] = []
    for task_type, share in sorted(mix.items()):
        found = examples_by_type.get(task_type, ())
        if share > 0 and found:
            pool += found
            shares += [share / len(found)] * len(found)
    weights = np.array(shares, dtype=np.float64)
    return pool, weights / weights.sum() if pool else weights


def _loss(student: MoeModel, teacher: MoeModel, batch: Sequence[Example], options: RecoveryOptions) -> Tensor:
    prompts, targets = [example.prompt for example in batch], [example.target for example in batch]
    longest = max(map(len, targets))
    wanted = torch.tensor([[*target, *([_IGNORED] * (longest - len(target)))] for target in targets], device=student.device).flatten()
    logits = student.teacher_forced(prompts, targets).flatten(0, 1)
    loss = F.cross_entropy(logits, wanted, ignore_index=_IGNORED)
    if options.divergence_weight == 0:
        return loss
    with torch.no_grad():
        known = teacher.teacher_forced(prompts, targets).flatten(0, 1)
    valid = wanted != _IGNORED
    soft = F.log_softmax(logits[valid] / options.temperature, dim=-1)
    towards = F.log_softmax(known[valid] / options.temperature, dim=-1)
    return loss + options.divergence_weight * F.kl_div(soft, towards, reduction="batchmean", log_target=True)


def _as_stored(new: ExpertStack, old: ExpertStack) -> ExpertStack:
    weights = {name: weight.detach().to(old.weights[name].dtype) for name, weight in new.weights.items()}
    return ExpertStack(weights, new.index_map)
