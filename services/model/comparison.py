"""Every compression at every budget, made for one task type from calibration items and scored on others: what decides between them.

Beside them stand the model as it is, the unmerged model at each bit width, and the control with every expert zero. Values only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.core.merging.errors import BudgetError
from services.model.calibration import answer_limit, measure
from services.model.checkpoint import BaseModel
from services.model.compressions import compared_bits, compression, compressions, is_unmerged
from services.model.evidence import gather
from services.model.families.base import MoeModel
from services.model.memory import non_expert_bytes
from services.model.quantise import zeroed
from services.model.recovery import Example, examples
from services.model.splicing import spliced
from services.tasks.scoring import SCORERS
from services.tasks.values import TaskItem, TaskSet

BUDGETS_BITS = (4.0, 2.0, 1.25, 0.84, 0.56, 0.28)  # of room for each original expert weight
MOST_EXAMPLES = 1024  # to which few calibration items are filled up by splicing
SPLICED_FOR_EACH = 6

Tell = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Point:
    """One compressed model, scored. `bits` as asked for, 0: the compression's own choice. `divergence` is on calibration items, nats."""

    method: str
    bits: int
    budget_bits: float | None  # None where bytes follow from bits
    bits_per_weight: float
    model_bytes: int
    score: float
    divergence: float
    told: str
    seconds: float

    @property
    def name(self) -> str:
        return self.method if self.bits == 0 or self.budget_bits is None else f"{self.method}, {self.bits} bits"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All points of one task type."""

    task_type: str
    num_calibration: int
    num_spliced: int
    num_scored: int
    full_score: float
    full_bytes: int
    stored_bits: int
    zero_score: float
    points: tuple[Point, ...]

    def best_unmerged(self, budget_bits: float) -> Point | None:
        """What the unmerged model scores best with in the room of a budget."""
        fitting = [point for point in self.points if point.budget_bits is None and point.bits_per_weight <= budget_bits]
        return max(fitting, key=lambda point: (point.score, -point.divergence), default=None)


def compare(
    base: BaseModel,
    task_type: str,
    calibration: Sequence[TaskItem],
    scored: TaskSet,
    methods: Sequence[str] = (),
    budgets_bits: Sequence[float] = BUDGETS_BITS,
    tell: Tell | None = None,
) -> Comparison:
    """Compress for `task_type` on its `calibration` items and score on those of `scored`; BudgetErrors leave a point out."""
    run = _Run(base, task_type, calibration, scored)
    wanted = list(_wanted(methods or compressions(), budgets_bits))
    full, zero = run.score(base.model), run.score(zeroed(base.model))
    points = []
    for number, (method, bits, budget) in enumerate(wanted):
        if tell is not None:
            tell(
                f"{task_type}: {method}, {bits or 'any'} bits" + ("" if budget is None else f", room for {budget:g}"), number / len(wanted)
            )
        point = run.point(method, bits, budget)
        points += [] if point is None else [point]
    first = next(iter(base.model.experts[0].weights.values()))
    return Comparison(
        task_type, len(run.items), run.num_spliced, len(scored.of_type(task_type)), full, base.full_bytes,
        8 * first.element_size(), zero, tuple(points),
    )  # fmt: skip


def _wanted(methods: Sequence[str], budgets_bits: Sequence[float]) -> Iterator[tuple[str, int, float | None]]:
    for method in methods:
        for bits in compared_bits(method):
            for budget in (None,) if is_unmerged(method) else budgets_bits:
                yield method, bits, budget


class _Run:
    def __init__(self, base: BaseModel, task_type: str, calibration: Sequence[TaskItem], scored: TaskSet) -> None:
        self.items = tuple(calibration)
        self._base, self._type = base, task_type
        self._scored = {task_type: scored.of_type(task_type)}
        self._scorers = {task_type: SCORERS[scored.scorers[task_type]]}
        self._most_tokens = answer_limit(base.tokenizer, {task_type: [*self.items, *self._scored[task_type]]})
        real = examples(base.tokenizer, base.model.shape, self.items)
        extra = _extra(base, real)
        self.num_spliced = len(extra)
        self._evidence = gather(base, real, extra)
        self._rest_bytes = non_expert_bytes(base.model)
        self._weights = sum(layer.num_experts * layer.expert_params for layer in base.model.shape.layers)

    def score(self, model: MoeModel) -> float:
        return measure(model, self._base.tokenizer, self._scored, self._scorers, self._most_tokens).quality[self._type]

    def point(self, method: str, bits: int, budget: float | None) -> Point | None:
        room = self._base.full_bytes if budget is None else int(budget * self._weights / 8)
        start_at_s = time.perf_counter()
        try:
            made = compression(method)(self._evidence, room, bits)
        except BudgetError:
            return None
        seconds = time.perf_counter() - start_at_s
        model = self._base.model.with_experts(made.stacks)
        assert budget is None or made.expert_bytes <= room
        return Point(
            method, bits, budget, made.expert_bytes * 8 / self._weights, self._rest_bytes + made.expert_bytes,
            self.score(model), self._evidence.divergence(model), made.told, seconds,
        )  # fmt: skip


def _extra(base: BaseModel, real: Sequence[Example]) -> list[Example]:
    count = min(SPLICED_FOR_EACH * len(real), MOST_EXAMPLES - len(real))
    return spliced(base.model, real, count) if count > 0 else []
