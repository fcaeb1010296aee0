"""Recorders of routing choices: counts of original experts, and the Gram matrices that calibration needs. Padding never reaches them."""

from __future__ import annotations

import torch
from torch import Tensor

from services.core.merging.values import Counts, LayerStatistics
from services.model.families.base import ModelShape


class CountingRecorder:
    """Counts which original experts the router chose. The sum over a layer is exactly tokens seen times top_k."""

    def __init__(self, shape: ModelShape) -> None:
        self._num_experts = [layer.num_experts for layer in shape.layers]
        self._counts: list[Tensor | None] = [None] * len(self._num_experts)

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        seen = torch.bincount(chosen.flatten(), minlength=self._num_experts[layer])
        before = self._counts[layer]
        self._counts[layer] = seen if before is None else before + seen

    def take(self) -> Counts:
        """(num_layers, num_experts) since the last call; starts again from zero."""
        width = max(self._num_experts, default=0)
        taken = torch.zeros(len(self._num_experts), width, dtype=torch.int64)
        for layer, counts in enumerate(self._counts):
            if counts is not None:
                taken[layer, : counts.numel()] = counts.cpu()
        self._counts = [None] * len(self._num_experts)
        return taken.numpy()


class GramRecorder:
    """Counts, and G^T G of the router logits: both add over tokens, so statistics of a mix of tasks are sums (spec/merging.md B)."""

    def __init__(self, shape: ModelShape) -> None:
        self._counter = CountingRecorder(shape)
        self._grams = [torch.zeros(layer.num_experts, layer.num_experts, dtype=torch.float64) for layer in shape.layers]

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        self._counter.record(layer, chosen, logits, inputs, gates)
        exact = logits.detach().double()
        self._grams[layer] += (exact.T @ exact).cpu()

    def take(self, num_tasks: int) -> tuple[LayerStatistics, ...]:
        """Statistics of a mean task: sums so far divided by `num_tasks`, so that mixing by task shares weighs tasks, not tokens."""
        counts = self._counter.take()
        taken = tuple(
            LayerStatistics(counts[layer, : gram.shape[0]] / num_tasks, gram.numpy() / num_tasks) for layer, gram in enumerate(self._grams)
        )
        self._grams = [torch.zeros_like(gram) for gram in self._grams]
        return taken
