"""What the simulator asks of a model: which versions can be built, how good they are, what their routers show, how long answers are.

Two kinds: `measured.py` reads a profile of a real model, `stated.py` draws one from stated distributions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.core.merging.mix import expected
from services.core.merging.values import Frequencies, normalised
from services.core.offload.values import StepTimes
from services.core.runtimes.mixed_precision import Sizes

PerTask = NDArray[np.float64]  # (num_layers, num_experts) expected activation counts of one task


@dataclass(frozen=True, slots=True, eq=False)
class SimulatedVersion:
    """A model version: what its manifest states, and what it turns out to be worth. Equal requests give the same version."""

    version: str
    mix: Mapping[str, float]
    stated_quality: Mapping[str, float]  # in the manifest, from calibration items: what predictions start from
    quality: Mapping[str, float]  # expected score of an answer: what users get
    profiles: Mapping[str, PerTask]  # by task type, on this version
    model_bytes: int
    build_s: float

    @property
    def reference(self) -> Frequencies:
        """f': what this version shows for the mix it was built for."""
        return normalised(expected(self.profiles, self.mix))


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of tasks, drawn together: (num_tasks,) each."""

    prompt_bytes: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]


class SimulatedModel(Protocol):
    @property
    def task_types(self) -> tuple[str, ...]:
        """Sorted."""
        ...

    @property
    def step_times(self) -> StepTimes:
        """Of an edge with speed 1."""
        ...

    def version(self, mix: Mapping[str, float], memory_share: float) -> SimulatedVersion:
        """The model merged for this mix into the memory that holds this share of all experts; a share of 1 is the unmerged model."""
        ...

    def quantised(self, memory_share: float) -> SimulatedVersion:
        """The unmerged model at as many bits as fit into the same memory; experts are dropped where not even one bit fits."""
        ...

    @property
    def sizes(self) -> Sizes:
        """Bytes of the unmerged model as edges would hold it, an expert at 16 bits and at 4."""
        ...

    @property
    def four_bit_quality(self) -> Mapping[str, float]:
        """Of the unmerged model with every expert at 4 bits."""
        ...

    def lengths(self, task_type: str, num_tasks: int, rng: np.random.Generator) -> Lengths:
        """At least one token each."""
        ...

    def mean_output_tokens(self) -> Mapping[str, float]:
        """By task type, as calibration of the base model would tell."""
        ...


def alike(task_types: Sequence[str]) -> dict[str, float]:
    """The uniform mix."""
    return dict.fromkeys(task_types, 1.0 / len(task_types))


def mix_name(mix: Mapping[str, float]) -> str:
    """`facts.80+question.20`: part of a version's id."""
    return "+".join(f"{t}.{round(share * 100):d}" for t, share in sorted(mix.items()) if share > 0)
