"""Recorders of routing choices: counts of original experts, and the Gram matrices that calibration needs. Padding never reaches them."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.core.merging.values import Counts, LayerStatistics
from services.model.families.base import ModelShape


class CountingRecorder:
    """Counts which original experts the router chose. The sum over a layer is exactly tokens seen times top_k."""

    def __init__(self, shape: ModelShape) -> None:
        self._num_experts = [layer.num_experts for layer in shape.layers]
        self._counts: list[Tensor | None] = [None] * len(self._num_experts)
        self._numbers = np.zeros((len(self._num_experts), max(self._num_experts, default=0)), dtype=np.int64)

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        flat, counts = chosen.flatten(), self._counts[layer]
        if counts is None:
            with torch.inference_mode(False):  # or it could be added to nowhere else
                counts = self._counts[layer] = flat.new_zeros(self._num_experts[layer])
        counts.scatter_add_(0, flat, torch.ones_like(flat))  # asks a GPU nothing, unlike `bincount`

    def count(self, layer: int, chosen: NDArray[np.int64]) -> None:
        """Of choices that are in the processor's memory already, wherever the model is."""
        self._numbers[layer] += np.bincount(chosen.reshape(-1), minlength=self._numbers.shape[1])

    def take(self) -> Counts:
        """(num_layers, num_experts) since the last call; starts again from zero."""
        taken = self._numbers
        for layer, counts in enumerate(self._counts):
            if counts is not None:
                taken[layer, : counts.numel()] += counts.cpu().numpy()
        self._numbers = np.zeros_like(taken)
        self._counts = [None] * len(self._num_experts)
        return taken


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
