"""Plans of fitted experts: which form (bits, hidden units, rank) each original expert is held in, for a mix and within a room exactly.

What an expert costs in a form was calibrated by task type, and adds over the tasks of a mix; so a plan touches no weights. Least error in
all is not most quality: an answer that moved by many nats is wrong, however many more. So a plan is sought that leaves most of a mix's
tasks right: bytes first to few task types or to many, then where answers are on the edge. How errors are found is not decided here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import BudgetError
from services.core.merging.forms import chosen_forms
from services.core.merging.mix import checked_shares
from services.core.merging.recipes import FITTED
from services.core.merging.values import DROPPED, ExpertForm, LayerPlan, MergePlan

OTHER_TASKS = 0.002  # of the weight of the first: how much a task type counts at least, so that what is left over serves all
HALF_KEPT_NATS = 1.6  # an answer that moved so far is right half the time (README.md)
LEAST_STEEP = 0.1
ROUNDS = 4
KEEP_GAIN = 0.1  # a present form's error counts so much less: a change has to save more


@dataclass(frozen=True, slots=True)
class FormErrors:
    """What calibration showed of one base model. Errors are of a mean task of each type, in nats that its answers move.

    `forms` begin with DROPPED. `errors` (num_types, num_layers, num_experts, num_forms); `sent` (num_types, num_layers, num_experts,
    num_experts): an expert's tokens answered by another, as it is; `sizes_bytes` (num_layers, num_forms).
    """

    base: str
    task_types: tuple[str, ...]
    forms: tuple[ExpertForm, ...]
    errors: NDArray[np.float64]
    sent: NDArray[np.float64]
    sizes_bytes: NDArray[np.int64]


def fitted_plan(table: FormErrors, mix: Mapping[str, float], room_bytes: int, present: MergePlan | None = None) -> MergePlan:
    """The plan for traffic of the given mix with `room_bytes` for experts. Groups come in the order of their forms, then of their experts.

    `present`: the plan that an edge holds, where its forms are drawn to. Raises MixError, and BudgetError for a room below 0.
    """
    if room_bytes < 0:
        raise BudgetError(-room_bytes, 0)
    shares = checked_shares(mix, table.task_types)
    wanted = np.array([shares.get(task_type, 0.0) for task_type in table.task_types])
    chosen, weights = _most_kept(table, wanted, room_bytes, np.ones(1) if present is None else _drawn(table, present))
    nothing = np.tensordot(weights, table.errors[..., table.forms.index(DROPPED)], 1)
    sent = np.tensordot(weights, table.sent, 1)
    return MergePlan(table.base, FITTED, tuple(_layer(table.forms, *of_layer) for of_layer in zip(chosen, nothing, sent, strict=True)))


def kept_share(moved: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of a task type's quality, when its mean answer moved by so many nats: 1 / (1 + (nats / 1.6)^2)."""
    share: NDArray[np.float64] = 1 / (1 + (moved / HALF_KEPT_NATS) ** 2)
    return share


def _most_kept(
    table: FormErrors, wanted: NDArray[np.float64], room_bytes: int, drawn: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Forms (num_layers, num_experts) and the weights of task types that led to them. Begins with the first, the first two, ... task types
    of the mix alone; then weighs each by how much of it one nat less would keep."""
    found: list[tuple[float, NDArray[np.int64], NDArray[np.float64]]] = []
    order = np.argsort(-wanted, kind="stable")
    for number in range(1, int((wanted > 0).sum()) + 1):
        weights = np.zeros_like(wanted)
        weights[order[:number]] = wanted[order[:number]]
        for _ in range(ROUNDS):
            weights = np.maximum(weights / weights.max(), OTHER_TASKS)
            chosen = _chosen(table, weights, room_bytes, drawn)
            moved = _moved(table, chosen)
            share = kept_share(moved)
            if found and (found[-1][1] == chosen).all():
                break
            found.append((float(wanted @ share), chosen, weights))
            weights = wanted * np.maximum(2 * moved / HALF_KEPT_NATS**2 * share**2, LEAST_STEEP)
    best = max(score for score, _, _ in found)
    return next((chosen, weights) for score, chosen, weights in found if score == best)


def _chosen(table: FormErrors, weights: NDArray[np.float64], room_bytes: int, drawn: NDArray[np.float64]) -> NDArray[np.int64]:
    errors = np.tensordot(weights, table.errors, 1) * drawn
    num_layers, num_experts, num_forms = errors.shape
    sizes = np.repeat(table.sizes_bytes, num_experts, axis=0)
    return chosen_forms(errors.reshape(-1, num_forms), sizes, room_bytes).reshape(num_layers, num_experts)


def _moved(table: FormErrors, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """(num_types,): what the errors of all experts come to."""
    moved: NDArray[np.float64] = np.take_along_axis(table.errors, chosen[None, :, :, None], axis=3).sum((1, 2, 3))
    return moved


def _layer(forms: tuple[ExpertForm, ...], chosen: NDArray[np.int64], nothing: NDArray[np.float64], sent: NDArray[np.float64]) -> LayerPlan:
    """A dropped expert joins the group of the kept one that answers its tokens best, if that is better than nothing."""
    held = {expert: forms[index] for expert, index in enumerate(chosen.tolist()) if forms[index] != DROPPED}
    kept = sorted(held, key=lambda expert: (_order(held[expert]), expert))
    members = {expert: [expert] for expert in kept}
    unanswered = []
    for expert in sorted(set(range(len(chosen))) - set(kept)):
        host = min(kept, key=lambda other: (sent[expert, other], other), default=None)
        if host is not None and sent[expert, host] < nothing[expert]:
            members[host].append(expert)
        else:
            unanswered.append(expert)
    groups = [tuple(members[expert]) for expert in kept]
    coefficients = [(1.0, *(0.0,) * (len(group) - 1)) for group in groups]
    held_forms = [held[expert] for expert in kept]
    if unanswered:
        groups, coefficients, held_forms = [*groups, tuple(unanswered)], [*coefficients, (0.0,) * len(unanswered)], [*held_forms, DROPPED]
    return LayerPlan(tuple(groups), tuple(coefficients), tuple(held_forms))


def _order(form: ExpertForm) -> tuple[int, int, int]:
    return (form.bits, form.rank, form.units)


def _drawn(table: FormErrors, present: MergePlan) -> NDArray[np.float64]:
    """(num_layers, num_experts, num_forms): below 1 where an expert is held in that form already."""
    factors = np.ones(table.errors.shape[1:])
    place = {form: number for number, form in enumerate(table.forms)}
    if present.base != table.base or len(present.layers) != len(factors):
        return factors
    for number, layer in enumerate(present.layers):
        for group, form in zip(layer.groups, layer.forms, strict=False):
            if form in place and form != DROPPED:
                factors[number, group[0], place[form]] = 1 - KEEP_GAIN
    return factors
