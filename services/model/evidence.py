"""What calibration items of one mix show of each expert: the inputs it gets, the gates of its outputs, and what routers said.

Teacher-forced, so that every arm of a comparison is fitted to the same tokens. Also says how far another model's answers are from
those of the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from services.core.merging.values import BaseProfiles, Frequencies, LayerStatistics
from services.model.alignment import Aligned, align
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack, ModelShape, MoeModel
from services.model.families.layers import Activation, Expert
from services.model.recorder import GramRecorder
from services.model.recovery import Example

BATCH_ROWS = 64
MAX_TOKENS = 1 << 15  # of a layer; more are thinned out evenly
BACKGROUND_TOKENS = 256  # of the whole layer, that every expert is shown beside its own
BACKGROUND_WEIGHT = 16.0  # what all of them count, in mean tokens of its own


@dataclass(frozen=True, slots=True)
class ExpertTokens:
    """Tokens one expert is fitted to: the `num_own` that the router sends it, then a light background of its layer's tokens."""

    inputs: Tensor  # (num_tokens, d_model) float32
    weights: Tensor  # (num_tokens,): squared gates
    num_own: int

    @property
    def own(self) -> ExpertTokens:
        return ExpertTokens(self.inputs[: self.num_own], self.weights[: self.num_own], self.num_own)


@dataclass(frozen=True, slots=True)
class LayerEvidence:
    """One MoE layer. `logits` (num_tokens, num_experts) go with `inputs`; `chosen` and `gates` are (num_tokens, top_k)."""

    stack: ExpertStack
    inputs: Tensor
    chosen: Tensor
    gates: Tensor
    logits: Tensor

    @property
    def num_experts(self) -> int:
        return int(self.logits.shape[1])

    def tokens(self, experts: Iterable[int] | None = None) -> list[ExpertTokens]:
        """Of each of `experts`; of all, by expert, where none are named."""
        background = self.inputs[:: max(1, -(-len(self.inputs) // BACKGROUND_TOKENS))]
        weight = BACKGROUND_WEIGHT * float(self.gates.square().mean()) / len(background)
        light = torch.full((len(background),), weight)
        found = []
        for expert in range(self.num_experts) if experts is None else experts:
            rows, places = (self.chosen == expert).nonzero(as_tuple=True)
            inputs, weights = self.inputs[rows], self.gates[rows, places].square()
            found.append(ExpertTokens(torch.cat([inputs, background]), torch.cat([weights, light]), len(rows)))
        return found


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a compression may know of the traffic."""

    base: BaseModel
    profiles: BaseProfiles  # of one task type, "traffic": the mix itself
    layers: tuple[LayerEvidence, ...]
    batches: tuple[tuple[Example, ...], ...]
    answers: tuple[Tensor, ...]  # log probabilities of the base model, (num target tokens, vocab), by batch
    aligned: Aligned
    shared: dict[str, object] = field(default_factory=dict)  # work that one compression does once for all budgets, by its name

    @property
    def rule(self) -> Expert:
        return self.base.model.expert

    @property
    def usage(self) -> Frequencies:
        return self.profiles.frequencies(TRAFFIC)

    def divergence(self, model: MoeModel) -> float:
        """Mean Kullback-Leibler divergence of a target token's distribution, from the base model's to that of `model`, in nats."""
        total, count = 0.0, 0
        for batch, known in zip(self.batches, self.answers, strict=True):
            other = _log_probabilities(model, batch)
            total += float((known.exp() * (known - other)).sum())
            count += len(known)
        return total / count


TRAFFIC = "traffic"


class _TokenRecorder:
    """Keeps what experts get. Statistics of routing are kept over all tokens, inputs over at most `MAX_TOKENS` of a layer."""

    def __init__(self, shape: ModelShape) -> None:
        self.grams = GramRecorder(shape)
        self._parts: list[list[tuple[Tensor, Tensor, Tensor, Tensor]]] = [[] for _ in shape.layers]

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        self.grams.record(layer, chosen, logits, inputs, gates)
        self._parts[layer].append((inputs.float(), chosen, gates.float(), logits.float()))

    def layer(self, number: int, stack: ExpertStack) -> LayerEvidence:
        inputs, chosen, gates, logits = (torch.cat(parts) for parts in zip(*self._parts[number], strict=True))
        every = -(-len(inputs) // MAX_TOKENS)
        return LayerEvidence(stack, inputs[::every], chosen[::every], gates[::every], logits[::every])


def gather(base: BaseModel, examples: Sequence[Example], more: Sequence[Example] = ()) -> Evidence:
    """One pass of the base model over the calibration examples of a mix. `more` add tokens to fit to; answers are judged without them."""
    recorder = _TokenRecorder(base.model.shape)
    batches = _batches(examples)
    answers = tuple(_log_probabilities(base.model, batch, recorder) for batch in batches)
    for batch in _batches(more):
        _log_probabilities(base.model, batch, recorder)
    layers = tuple(recorder.layer(number, stack) for number, stack in enumerate(base.model.experts))
    statistics: Mapping[str, tuple[LayerStatistics, ...]] = {TRAFFIC: recorder.grams.take(len(examples) + len(more))}
    return Evidence(base, BaseProfiles(base.base_id, (TRAFFIC,), statistics), layers, batches, answers, align(base))


def _batches(examples: Sequence[Example]) -> tuple[tuple[Example, ...], ...]:
    ordered = sorted(examples, key=lambda example: len(example.prompt))
    return tuple(tuple(ordered[start : start + BATCH_ROWS]) for start in range(0, len(ordered), BATCH_ROWS))


def in_float32(stack: ExpertStack) -> ExpertStack:
    return replace(stack, weights={name: weight.detach().float() for name, weight in stack.weights.items()})


def with_layer(model: MoeModel, number: int, stack: ExpertStack) -> MoeModel:
    """`model` with one layer's experts exchanged."""
    return model.with_experts([stack if index == number else kept for index, kept in enumerate(model.experts)])


def outputs(rule: Expert, weights: Mapping[str, Tensor], inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What one expert makes of `inputs` (num_tokens, d_model), and the input of each of its matrices, in the order of their use."""
    seen: dict[str, Tensor] = {}

    def product(part: Tensor, name: str, activation: Activation | None) -> Tensor:
        seen[name] = part
        made = part @ weights[name].T
        return made if activation is None else activation(made)

    return rule(product, inputs), seen


def _log_probabilities(model: MoeModel, batch: Sequence[Example], recorder: _TokenRecorder | None = None) -> Tensor:
    with torch.no_grad():
        logits = model.teacher_forced([example.prompt for example in batch], [example.target for example in batch], recorder)
    valid = np.arange(logits.shape[1]) < np.array([[len(example.target)] for example in batch])
    return logits[torch.from_numpy(valid)].float().log_softmax(-1)
