"""A model as `measuring.py` measured it: a mix that was not measured is served by the nearest one that was."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadgen.simulator.errors import ProfileError
from loadgen.simulator.model import Lengths, PerTask, SimulatedVersion, alike, mix_name
from services.core.merging.mix import distance
from services.core.offload.values import StepTimes
from services.core.runtimes.mixed_precision import Sizes

FORMAT = 1
FOUR_BITS = 4
COUNTS_PER = 100  # activation counts are kept for so many tasks, as whole numbers


@dataclass(frozen=True, slots=True, eq=False)
class _Row:
    share: float
    mix: Mapping[str, float]
    stated_quality: Mapping[str, float]
    quality: Mapping[str, float]
    profiles: Mapping[str, PerTask]
    model_bytes: int
    build_s: float


@dataclass(frozen=True, slots=True, eq=False)
class FewBits:
    """The unmerged model at so many bits."""

    bits: int
    experts_dropped: int
    model_bytes: int
    quality: Mapping[str, float]
    profiles: Mapping[str, PerTask]


class Unmerged:
    """What the model is worth without merging, in the dtype that edges hold it in: `quantising.py` measured it."""

    def __init__(self, told: Mapping[str, Any], task_types: Sequence[str], shape: tuple[int, int]) -> None:
        self.full_bytes, self.non_expert_bytes = int(told["full_bytes"]), int(told["non_expert_bytes"])
        self.zero_expert_quality: Mapping[str, float] = told["zero_expert_quality"]
        self.rows = [
            FewBits(
                int(row["bits"]),
                int(row["experts_dropped"]),
                int(row["model_bytes"]),
                row["quality"],
                {t: unpacked(row["counts"][t], shape) for t in task_types},
            )
            for row in told["rows"]
        ]

    def row(self, bits: int) -> FewBits:
        return next(row for row in self.rows if row.bits == bits and row.experts_dropped == 0)

    def largest(self, memory_share: float) -> FewBits:
        """In the bytes of a merge that keeps this share of all experts."""
        memory_bytes = self.non_expert_bytes + memory_share * (self.full_bytes - self.non_expert_bytes)
        fitting = [row for row in self.rows if row.model_bytes <= memory_bytes + 0.5]
        if not fitting:
            least = min(row.model_bytes for row in self.rows)
            raise ProfileError(f"memory_share is {memory_share:g}, {memory_bytes:.0f} bytes: the smallest unmerged model has {least}")
        return max(fitting, key=lambda row: row.model_bytes)


class MeasuredModel:
    """Quality and routing are those of the measured mix at the smallest total variation (ties: the first by name), at the largest
    measured memory share that fits. f' is of the mix that was asked for."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        shape = (int(document["num_layers"]), int(document["num_experts"]))
        self.base_model = str(document["base_model"])
        self._num_experts = shape[0] * shape[1]
        self._task_types = tuple(sorted(document["task_types"]))
        self._step_times = StepTimes(**document["step_times"])
        self._lengths = {t: np.array(document["lengths"][t], dtype=np.int64) for t in self._task_types}
        rows = [
            _Row(
                float(told["share"]),
                told["mix"],
                told["stated_quality"],
                told["quality"],
                {t: unpacked(told["counts"][t], shape) for t in self._task_types},
                int(told["model_bytes"]),
                float(told["build_s"]),
            )
            for told in document["versions"]
        ]
        self._rows = sorted(rows, key=lambda row: (row.share, mix_name(row.mix)))
        if not self._rows:
            raise ProfileError("versions: the profile has none; measure at least one")
        full = document["full_quality"]
        self._full = _Row(
            1.0,
            {},
            full,
            full,
            {t: unpacked(document["full_counts"][t], shape) for t in self._task_types},
            int(document["full_bytes"]),
            0.0,
        )
        self._unmerged = Unmerged(document["unmerged"], self._task_types, shape) if "unmerged" in document else None
        self._made: dict[tuple[str, float], SimulatedVersion] = {}

    @property
    def task_types(self) -> tuple[str, ...]:
        return self._task_types

    @property
    def step_times(self) -> StepTimes:
        return self._step_times

    def share_within(self, memory_bytes: int) -> float:
        """The largest memory share whose versions fit, 1 where the whole model does. Raises ProfileError where none fits."""
        if memory_bytes >= self._full.model_bytes:
            return 1.0
        fitting = [row.share for row in self._rows if row.model_bytes <= memory_bytes]
        if not fitting:
            least = min(row.model_bytes for row in self._rows)
            raise ProfileError(
                f"no measured version fits into {memory_bytes} bytes, the smallest has {least}: measure with the --dtype that edges hold "
                "(moedge replay --dtype), and with smaller --shares"
            )
        return max(fitting)

    def version(self, mix: Mapping[str, float], memory_share: float) -> SimulatedVersion:
        row = self._row(mix, memory_share)
        key = (mix_name(mix), row.share)
        if key not in self._made:
            told = f"{key[0]}@{row.share:.0%}"
            self._made[key] = SimulatedVersion(told, dict(mix), row.stated_quality, row.quality, row.profiles, row.model_bytes, row.build_s)
        return self._made[key]

    def quantised(self, memory_share: float) -> SimulatedVersion:
        """States the quality that it has."""
        if memory_share >= 1.0:
            return self.version(alike(self._task_types), 1.0)
        row = self.unmerged.largest(memory_share)
        name = f"unmerged, {row.bits} bits" + (f", {row.experts_dropped} experts dropped" if row.experts_dropped else "")
        return SimulatedVersion(name, alike(self._task_types), row.quality, row.quality, row.profiles, row.model_bytes, 0.0)

    @property
    def unmerged(self) -> Unmerged:
        if self._unmerged is None:
            raise ProfileError("the profile lacks the unmerged model: add it with python -m loadgen.simulator.measuring --extend")
        return self._unmerged

    @property
    def sizes(self) -> Sizes:
        told, num_experts = self.unmerged, self._num_experts
        at_4_bits = (told.row(FOUR_BITS).model_bytes - told.non_expert_bytes) / num_experts
        return Sizes(num_experts, (told.full_bytes - told.non_expert_bytes) / num_experts, at_4_bits, told.non_expert_bytes)

    @property
    def four_bit_quality(self) -> Mapping[str, float]:
        return self.unmerged.row(FOUR_BITS).quality

    def lengths(self, task_type: str, num_tasks: int, rng: np.random.Generator) -> Lengths:
        """Drawn from the tasks that were measured."""
        kept = self._lengths[task_type]
        drawn = kept[rng.integers(len(kept), size=num_tasks)]
        return Lengths(drawn[:, 0], drawn[:, 1], np.maximum(drawn[:, 2], 1))

    def mean_output_tokens(self) -> dict[str, float]:
        return {t: float(kept[:, 2].mean()) for t, kept in self._lengths.items()}

    def _row(self, mix: Mapping[str, float], memory_share: float) -> _Row:
        if memory_share >= 1.0:
            return self._full
        shares = sorted({row.share for row in self._rows if row.share <= memory_share + 1e-9})
        if not shares:
            least = min(row.share for row in self._rows)
            raise ProfileError(f"memory_share is {memory_share:g}: the profile has measured {least:g} and more")
        fitting = [row for row in self._rows if row.share == shares[-1]]
        return min(fitting, key=lambda row: round(distance(mix, row.mix), 9))


def read_profile(path: Path) -> MeasuredModel:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read as a profile ({error}); make one with python -m loadgen.simulator.measuring") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ProfileError(f"{path}: not a profile of format {FORMAT}; make one with python -m loadgen.simulator.measuring")
    try:
        return MeasuredModel(document)
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        raise ProfileError(f"{path}: {error!r} is missing or broken; make the profile again") from error


def rounded_quality(quality: Mapping[str, float]) -> dict[str, float]:
    return {t: round(score, 4) for t, score in sorted(quality.items())}


def packed(counts_per_task: PerTask) -> str:
    whole = np.minimum(np.rint(counts_per_task * COUNTS_PER), 65535).astype("<u2")
    return base64.b64encode(zlib.compress(whole.tobytes(), 9)).decode()


def unpacked(text: str, shape: tuple[int, int]) -> PerTask:
    whole = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u2")
    return whole.reshape(shape).astype(np.float64) / COUNTS_PER
