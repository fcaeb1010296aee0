"""Fits experts to a form (bits, hidden units, rank) on the tokens they get: fewer units, packed matrices, an output projection solved anew.

Matrices are packed in the order of their use. What leads out of the hidden units is first solved by least squares for the hidden units as
they have become (MergeMoE's idea, arXiv 2510.14436, for one expert), then packed with compensation. No plan and no budget here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.core.merging.values import ExpertForm
from services.model.alignment import hidden_axis
from services.model.compensation import packed_experts
from services.model.evidence import ExpertTokens, outputs
from services.model.families.base import OUT, ExpertStack
from services.model.families.layers import Expert
from services.model.narrowing import units_by_need
from services.model.packed import PackedMatrix, packed_bytes

MOMENTS_AT_ONCE = 1 << 24  # entries
RIDGE = 0.01  # of the mean second moment: keeps what few tokens cannot tell near what it was


@dataclass(frozen=True, slots=True)
class FittedExpert:
    """One expert in a form. `error`: Σ gate² ‖f(x) - f̂(x)‖² over its own calibration tokens."""

    matrices: dict[str, PackedMatrix]
    error: float

    @property
    def num_bytes(self) -> int:
        return sum(matrix.num_bytes for matrix in self.matrices.values())

    def weights(self) -> dict[str, Tensor]:
        return {name: matrix.unpacked() for name, matrix in self.matrices.items()}


def form_bytes(stack: ExpertStack, form: ExpertForm) -> int:
    """Bytes of one expert of `stack` in `form`."""
    if form.bits == 0:
        return 0
    return sum(packed_bytes(_narrow_shape(name, weight, form.units), form.bits, form.rank) for name, weight in stack.weights.items())


class LayerFitter:
    """Fits any of a layer's experts to any form; what all forms share is computed once. `stack` holds float32 weights."""

    def __init__(self, rule: Expert, stack: ExpertStack, tokens: Sequence[ExpertTokens], stored: torch.dtype) -> None:
        self._rule, self._stack, self._tokens, self._stored = rule, stack, tokens, stored
        self._exact = [outputs(rule, self._originals(expert), shown.inputs)[0] for expert, shown in enumerate(tokens)]
        self._need = torch.cat([self._needed(experts) for experts in self._chunks(range(len(tokens)))])

    def dropped(self, expert: int) -> float:
        """The error of an expert that answers nothing."""
        return self._error(expert, torch.zeros_like(self._exact[expert]))

    def sent_to(self, expert: int, fitted: FittedExpert) -> float:
        """The error of an expert whose tokens another answers."""
        return self._error(expert, outputs(self._rule, fitted.weights(), self._tokens[expert].inputs)[0])

    def fitted(self, experts: Sequence[int], form: ExpertForm) -> list[FittedExpert]:
        """These experts in one form, of 1 to 16 bits."""
        if not 1 <= form.bits <= 16 or not 1 <= form.units <= self.num_units:
            raise ValueError(f"form: {form.bits} bits and {form.units} units; give 1 to 16 bits and 1 to {self.num_units} units")
        return [made for chunk in self._chunks(experts) for made in self._fitted(chunk, form)]

    @property
    def num_units(self) -> int:
        return int(self._stack.weights[OUT].shape[2])

    def _fitted(self, experts: Sequence[int], form: ExpertForm) -> list[FittedExpert]:
        units = self._need[list(experts), : form.units].sort(dim=1).values
        now = [self._narrowed(expert, kept) for expert, kept in zip(experts, units, strict=True)]
        packed: list[dict[str, PackedMatrix]] = [{} for _ in experts]
        for name in self._order():
            solved = [self._solved(expert, weights, name, form) for expert, weights in zip(experts, now, strict=True)]
            exact, moments = (torch.stack(parts) for parts in zip(*solved, strict=True))
            for done, weights, matrix in zip(packed, now, packed_experts(exact, moments, form.bits, form.rank, self._stored), strict=True):
                done[name], weights[name] = matrix, matrix.unpacked()
        errors = [
            self._error(expert, outputs(self._rule, weights, self._tokens[expert].inputs)[0])
            for expert, weights in zip(experts, now, strict=True)
        ]
        return [FittedExpert(matrices, error) for matrices, error in zip(packed, errors, strict=True)]

    def _chunks(self, experts: Sequence[int]) -> list[Sequence[int]]:
        """So many experts at once that their second moments stay small."""
        size = max(1, MOMENTS_AT_ONCE // max(weight.shape[2] for weight in self._stack.weights.values()) ** 2)
        return [experts[start : start + size] for start in range(0, len(experts), size)]

    def _needed(self, experts: Sequence[int]) -> Tensor:
        moments = [self._moments(expert, self._originals(expert), OUT) for expert in experts]
        return units_by_need(self._stack.weights[OUT][list(experts)], torch.stack(moments))

    def _order(self) -> list[str]:
        """Names of matrices in the order of their use."""
        return list(outputs(self._rule, self._originals(0), self._tokens[0].inputs[:1])[1])

    def _originals(self, expert: int) -> dict[str, Tensor]:
        return {name: weight[expert] for name, weight in self._stack.weights.items()}

    def _narrowed(self, expert: int, units: Tensor) -> dict[str, Tensor]:
        return {name: weight.index_select(hidden_axis(name) - 1, units) for name, weight in self._originals(expert).items()}

    def _moments(self, expert: int, weights: dict[str, Tensor], name: str) -> Tensor:
        shown = self._tokens[expert]
        return second_moments(outputs(self._rule, weights, shown.inputs)[1][name], shown.weights)

    def _solved(self, expert: int, weights: dict[str, Tensor], name: str, form: ExpertForm) -> tuple[Tensor, Tensor]:
        """The matrix to be packed and the moments of its inputs."""
        shown = self._tokens[expert]
        inputs = outputs(self._rule, weights, shown.inputs)[1][name]
        moments = second_moments(inputs, shown.weights)
        if name != OUT or (form.bits >= 16 and form.units == self.num_units):
            return weights[name], moments
        return least_squares(inputs, self._exact[expert], shown.weights, weights[name]), moments

    def _error(self, expert: int, made: Tensor) -> float:
        own = self._tokens[expert].num_own
        missed = (made - self._exact[expert])[:own].square().sum(1)
        return float((missed * self._tokens[expert].weights[:own]).sum())


def second_moments(inputs: Tensor, weights: Tensor) -> Tensor:
    """Σ w x xᵀ (width, width), made positive definite."""
    moments = (inputs * weights[:, None]).T @ inputs
    return moments + _ridge(moments) * torch.eye(len(moments))


def least_squares(hidden: Tensor, targets: Tensor, weights: Tensor, prior: Tensor) -> Tensor:
    """The W (d_model, units) that makes `targets` (num_tokens, d_model) of `hidden` best: Σ w‖t - W h‖² + ridge ‖W - prior‖².

    Never worse on these tokens than `prior`, which a ridge draws it to.
    """
    moments = ((hidden * weights[:, None]).T @ hidden).double()
    ridge = _ridge(moments)
    right = ((targets * weights[:, None]).T @ hidden).double() + ridge * prior.double()
    solved: Tensor = torch.linalg.solve(moments + ridge * torch.eye(len(moments), dtype=torch.float64), right.T)
    return solved.T.float()


def _ridge(moments: Tensor) -> float:
    return RIDGE * float(torch.diagonal(moments).mean()) + 1e-8


def _narrow_shape(name: str, weight: Tensor, units: int) -> tuple[int, int]:
    rows, columns = int(weight.shape[1]), int(weight.shape[2])
    return (rows, units) if hidden_axis(name) == 2 else (units, columns)
