"""The least time that a run could take on this machine: for each call the weights it touches over memory bandwidth, or its operations over
the matrix rate, whichever takes longer. Keys, values and activations, which come on top, are left out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from services.core.merging.values import Counts
from services.model.families.base import ModelShape, MoeModel
from services.model.recorder import CountingRecorder


@dataclass(slots=True)
class Call:
    """What one prefill or one decoding step did in its MoE layers."""

    is_prefill: bool
    num_tokens: int
    num_experts_hit: int = 0


class CallRecorder:
    """Counts of choices, and of experts hit by call. `num_encoder_layers` of the MoE layers run in a prefill, the others in a step."""

    def __init__(self, shape: ModelShape) -> None:
        self._counter = CountingRecorder(shape)
        self._num_encoder_layers = sum(layer.name.startswith("encoder") for layer in shape.layers)
        self.calls: list[Call] = []

    def record(self, layer: int, chosen: Tensor, logits: Tensor, inputs: Tensor, gates: Tensor) -> None:
        self._counter.record(layer, chosen, logits, inputs, gates)
        if layer in (0, self._num_encoder_layers):
            self.calls.append(Call(layer < self._num_encoder_layers, chosen.shape[0]))
        self.calls[-1].num_experts_hit += int(torch.bincount(chosen.flatten()).count_nonzero())

    def take(self) -> Counts:
        return self._counter.take()


@dataclass(frozen=True, slots=True)
class Machine:
    bandwidth_bytes_per_s: float
    matrix_flops_per_s: float


@dataclass(slots=True)
class Limit:
    """Of one run. `weight_bytes` and `flops` are what all calls together touch and compute."""

    weight_bytes: float = 0.0
    flops: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    _calls: int = field(default=0)

    @property
    def least_s(self) -> float:
        return self.prefill_s + self.decode_s

    def add(self, call: Call, num_bytes: float, flops: float, machine: Machine) -> None:
        self.weight_bytes += num_bytes
        self.flops += flops
        least_s = max(num_bytes / machine.bandwidth_bytes_per_s, flops / machine.matrix_flops_per_s)
        if call.is_prefill:
            self.prefill_s += least_s
        else:
            self.decode_s += least_s


def limit_of(model: MoeModel, calls: list[Call], machine: Machine) -> Limit:
    prefill, step = (_dense_params(model, part) for part in ("prefill", "step"))
    layers = len(model.shape.layers)
    layer = model.shape.layers[0]
    weight = next(iter(model.experts[0].weights.values()))
    limit = Limit()
    for call in calls:
        dense = prefill if call.is_prefill else step
        expert_flops = 2 * layer.expert_params * call.num_tokens * layers / 2  # half of the MoE layers are in either stack
        num_bytes = weight.element_size() * (dense + call.num_experts_hit * layer.expert_params)
        limit.add(call, num_bytes, 2 * dense * call.num_tokens + expert_flops, machine)
    return limit


def _dense_params(model: MoeModel, part: str) -> int:
    """Parameters outside experts that every token of such a call goes through."""
    return sum(params for name, params in _dense(model) if (part == "prefill") == _is_prefill(name))


def _dense(model: MoeModel) -> Iterator[tuple[str, int]]:
    for name, tensor in model.parameters().items():
        if ".experts." not in name and not name.endswith("position_bias"):
            yield name, tensor.numel()


def _is_prefill(name: str) -> bool:
    """Encoder, and the keys and values of what it gives; the shared embedding is read as a whole only for logits."""
    return name.startswith("encoder") or name.endswith("cross.into")


def routing_entropy(counts: Counts) -> float:
    """Mean over layers, as a share of what even routing has."""
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    entropy = -np.where(shares > 0, shares * np.log(shares.clip(min=1e-12)), 0.0).sum(axis=1)
    return float(entropy.mean() / np.log(counts.shape[1]))
