"""Tanbr: online choice of merge weights by a tree-structured neural bandit (Han, Liu, Zhou, Dai, Lui, arXiv 2509.19781, 2025).

Once a slot the distribution of task types is estimated from what the router chose (no task tags); a binary tree partitions the space of
merge weights and offers the centres of its leaves; a neural bandit picks the weights with the highest upper bound of reward in that
context. Left open by what is published of it and chosen here: the reward is the expected quality of the version served on the estimated
mix, or 1 - activation shift where its quality is not known; half-spaces are halves of a simplex of mixes; one bandit an edge.

Paper's form: merges whenever the chosen weights are not the deployed ones. Strong form: the estimated mix, the deployed one and the pure
ones are choices too, the qualities by task type in a version's manifest are learnt from (and rewards asked of by task type, of which they
are means), and an update must promise `min_gain` more. Where no quality is known it is the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import OptionError
from services.core.merging.mix import GRID, explain
from services.core.merging.neural_bandit import NeuralBandit
from services.core.merging.shift import activation_shift
from services.core.merging.simplex_tree import Weights, leaf_centres
from services.core.merging.snapping import largest_remainder
from services.core.merging.triggers._base import TriggerDecision, TriggerState
from services.core.merging.values import Mix
from services.core.merging.windows import CountWindow

Row = tuple[float, ...]  # context, weights, reward


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """`interval_s` is the slot, `exploration` the width of the upper bound, `max_rows` what is remembered of an edge."""

    form: Literal["paper", "strong"] = "strong"
    interval_s: float = 60.0
    min_tokens: int = 500
    exploration: float = 0.2
    split_after: int = 2
    min_gain: float = 0.02
    max_rows: int = 128
    grid: int = GRID

    def __post_init__(self) -> None:
        if self.form not in ("paper", "strong"):
            raise OptionError(f"form is {self.form!r}; choose 'paper' or 'strong'")
        if self.interval_s <= 0 or self.split_after < 1 or self.max_rows < 1:
            raise OptionError("interval_s must be above 0, split_after and max_rows at least 1")

    @property
    def name(self) -> str:
        return "tanbr"

    @property
    def raw_frequencies(self) -> bool:
        return False

    def check(self, state: TriggerState, window: CountWindow, now_s: float) -> tuple[TriggerState, TriggerDecision]:
        deployed = state.deployed
        shift = activation_shift(window.frequencies, deployed.reference, window.counts, self.min_tokens)
        later = replace(state, due_at_s=now_s + self.interval_s)
        if not shift.enough:
            reason = f"too few tokens: {shift.layers_counted} of {shift.num_layers} layers have {self.min_tokens}"
            return later, TriggerDecision("skip", reason, shift.value, self.interval_s, window, window)
        if not deployed.profiles:
            return later, self._kept("no profiles to choose weights of", shift.value, window)
        task_types = sorted(deployed.profiles)
        context = _vector(explain(window.counts, deployed.profiles, self.grid).shares, task_types)
        present = _vector(deployed.mix, task_types)
        quality = np.array([deployed.quality.get(t, np.nan) for t in task_types])
        known = not np.isnan(quality).any()
        reward = float(context @ quality) if known else 1.0 - shift.value
        strong = self.form == "strong" and known
        rows = self._remembered(state, context, present, reward, quality if strong else None)
        chosen, gain = self._chosen(rows, context, present, strong)
        later = replace(later, memory=rows)
        if np.array_equal(chosen, self._snapped(present)):
            return later, self._kept("the deployed weights are the most promising", shift.value, window)
        if strong and gain < self.min_gain:
            return later, self._kept(f"other weights promise {gain:+.3f} reward, less than {self.min_gain}", shift.value, window)
        mix = Mix({t: float(share) for t, share in zip(task_types, chosen, strict=True) if share > 0.0})
        reason = f"other weights promise {gain:+.3f} reward"
        return later, TriggerDecision("update", reason, shift.value, self.interval_s, window, window.emptied(), mix)

    def _kept(self, reason: str, shift: float, window: CountWindow) -> TriggerDecision:
        return TriggerDecision("keep", reason, shift, self.interval_s, window, window.emptied())

    def _remembered(
        self, state: TriggerState, context: Weights, present: Weights, reward: float, quality: Weights | None
    ) -> tuple[Row, ...]:
        """What was seen before, of a model with as many task types, and what is seen now."""
        rows = [row for row in state.memory if len(row) == 2 * len(context) + 1]
        if quality is not None:
            pure = np.eye(len(context))
            known = [_row(pure[i], present, float(score)) for i, score in enumerate(quality)]
            rows += [row for row in known if row not in rows]
        rows.append(_row(context, present, reward))
        return tuple(rows[-self.max_rows :])

    def _chosen(self, rows: tuple[Row, ...], context: Weights, present: Weights, strong: bool) -> tuple[Weights, float]:
        """The weights with the highest upper bound, and how much higher it is than that of the present ones."""
        num_types = len(context)
        table = np.array(rows)
        tried = [row[num_types:-1] for row in table]
        choices = [present, *leaf_centres(num_types, tried, self.split_after)]
        if strong:
            choices += [context, *np.eye(num_types)]
        weights = np.array([self._snapped(choice) for choice in choices])
        bandit = NeuralBandit(_features(table[:, :num_types], table[:, num_types:-1]), table[:, -1])
        bounds = np.zeros(len(weights))
        for asked, share in zip(np.eye(num_types), context, strict=True) if strong else [(context, 1.0)]:
            features = _features(np.tile(asked, (len(weights), 1)), weights)
            bounds += share * (bandit.predicted(features) + self.exploration * bandit.spread(features))
        first = 0 if strong else 1  # the paper's choices are the leaves alone
        best = first + int(bounds[first:].argmax())
        return weights[best], float(bounds[best] - bounds[0])

    def _snapped(self, weights: Weights) -> Weights:
        snapped: Weights = np.asarray(largest_remainder(weights, self.grid), dtype=np.float64) / self.grid
        return snapped


def _vector(shares: Mapping[str, float], task_types: Sequence[str]) -> Weights:
    return np.array([float(shares.get(t, 0.0)) for t in task_types])


def _features(contexts: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Context, weights, and the shares that they have in common: what a small network would take many slots to find."""
    return np.hstack([contexts, weights, np.minimum(contexts, weights)])


def _row(context: Weights, weights: Weights, reward: float) -> Row:
    return (*context.tolist(), *weights.tolist(), reward)
