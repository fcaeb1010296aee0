"""Checks of build requests: from protobuf to what is built, or the failure that names the field and the cure. Costs nothing but a look."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from moedge.v1 import merger_pb2
from services.core.merging.errors import BudgetError, CountsError, MergingError, MixError
from services.core.merging.snapping import largest_remainder
from services.core.merging.values import Frequencies, normalised
from services.merger.builds import BuildRequest
from services.model.build import BuildOptions
from services.runtime.codec import rows_to_frequencies
from services.runtime.status import RpcFailure, budget_too_small, invalid_field, not_found

GRID = 20  # shares of a mix are multiples of 1 / GRID
MAX_RECOVERY_STEPS = 100_000


class RequestReader:
    """For one base model, whose names are its content id and what the merger was started with."""

    def __init__(self, base_names: Sequence[str], task_types: Sequence[str], num_experts: Sequence[int], defaults: BuildOptions) -> None:
        self._base_names = tuple(base_names)
        self._task_types = tuple(sorted(task_types))
        self._num_experts = tuple(num_experts)  # by layer
        self._defaults = defaults

    def check_base(self, base_model: str) -> None:
        if base_model and base_model not in self._base_names:
            raise not_found("base_model", base_model)

    def read(self, request: merger_pb2.BuildModelRequest) -> BuildRequest:
        self.check_base(request.base_model)
        raw = self._raw(request.raw_frequencies)
        mix = {} if raw is not None and not request.mix else self._mix(request.mix)
        return BuildRequest(mix, request.budget_bytes, self._options(request, raw))

    def _mix(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Snapped to the grid, so that near-equal requests are one build. Empty: uniform."""
        unknown = sorted(set(shares) - set(self._task_types))
        if unknown:
            raise invalid_field("mix", f"unknown task type {unknown[0]!r}; this base model is profiled for {', '.join(self._task_types)}")
        if any(not math.isfinite(share) or share < 0 for share in shares.values()):
            raise invalid_field("mix", "shares must be numbers from 0")
        if shares and abs(sum(shares.values()) - 1) > 1e-6:
            raise invalid_field("mix", f"shares must sum to 1, not {sum(shares.values()):g}")
        steps = largest_remainder(np.array([shares.get(task_type, 0.0) for task_type in self._task_types]), GRID)
        return {task_type: int(step) / GRID for task_type, step in zip(self._task_types, steps, strict=True) if step}

    def _raw(self, rows: Sequence[merger_pb2.LayerFrequencies]) -> Frequencies | None:
        if not rows:
            return None
        if [len(row.values) for row in rows] != list(self._num_experts):
            message = f"must have {len(self._num_experts)} rows, one a layer, with a value for each of its {self._num_experts[0]} experts"
            raise invalid_field("raw_frequencies", message)
        frequencies = rows_to_frequencies(rows)
        if not np.isfinite(frequencies).all() or (frequencies < 0).any():
            raise invalid_field("raw_frequencies", "values must be numbers from 0")
        return normalised(frequencies)

    def _options(self, request: merger_pb2.BuildModelRequest, raw: Frequencies | None) -> BuildOptions:
        """A request without options gets the merger's; one with options says all of them, names left empty apart."""
        asked, defaults = request.options, self._defaults
        if asked.recovery_steps > MAX_RECOVERY_STEPS:
            raise invalid_field("options.recovery_steps", f"at most {MAX_RECOVERY_STEPS} are taken")
        return BuildOptions(
            method=asked.method or defaults.method,
            allocation=asked.allocation or defaults.allocation,
            grouping=asked.grouping or defaults.grouping,
            recovery_steps=asked.recovery_steps if request.HasField("options") else defaults.recovery_steps,
            present_version=asked.present_version,
            raw_frequencies=raw,
        )


def failure_of_plan(error: MergingError) -> RpcFailure:
    """The planner's refusals."""
    match error:
        case BudgetError():
            return budget_too_small(error.smallest_bytes, f"budget_bytes: {error}")
        case MixError():
            return invalid_field("mix", str(error))
        case CountsError():
            return invalid_field("raw_frequencies", str(error))
        case _:
            return invalid_field("options", str(error))
