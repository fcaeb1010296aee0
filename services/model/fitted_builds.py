"""Versions of fitted experts for one base model: the table of forms made when first asked for, plans chosen from it, and their experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from services.core.merging.budget import expert_room_bytes
from services.core.merging.errors import BudgetError
from services.core.merging.fitted import fitted_plan
from services.core.merging.values import Budget, MergePlan
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack
from services.model.form_table import FORMAT, FormTable, form_table, refuse_too_large
from services.model.recovery import Example

RECIPE = {"forms": FORMAT}  # part of a version's name


class FittedBuilds:
    """`examples` gives the calibration examples by task type; called once, if at all."""

    def __init__(self, base: BaseModel, examples: Callable[[], Mapping[str, Sequence[Example]]], cache_dir: Path) -> None:
        self._base = base
        self._examples = examples
        self._cache_dir = cache_dir

    @cached_property
    def table(self) -> FormTable:
        refuse_too_large(self._base)
        return form_table(self._base, self._examples(), self._cache_dir)

    def prepare(self) -> None:
        """The table, made or read."""
        _ = self.table

    def plan(self, mix: Mapping[str, float], budget: Budget, present: MergePlan | None) -> MergePlan:
        """Never above the budget; what is left is less than any form would take that serves better. BudgetError, MixError, OptionError."""
        room_bytes = expert_room_bytes(budget)
        if room_bytes < 0:
            raise BudgetError(budget.bytes - room_bytes, budget.bytes)
        return fitted_plan(self.table.costs, mix, room_bytes, present)

    def stacks(self, plan: MergePlan) -> list[ExpertStack]:
        """The experts of a plan; a plan without forms is of the base model's own."""
        if not any(layer.forms for layer in plan.layers):
            return list(self._base.model.experts)
        return self.table.stacks(plan, self._base.model.device)
