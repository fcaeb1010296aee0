"""The online predictors, one file each, and the bundle of them that an engine learns into and an estimator reads from."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.core.offload.predictors.output_length import OutputLengthPredictor
from services.core.offload.predictors.prompt_length import PromptLengthPredictor
from services.core.offload.predictors.quality import QualityPredictor
from services.core.offload.predictors.step_time import StepTimePredictor

__all__ = ["OutputLengthPredictor", "Predictors", "PromptLengthPredictor", "QualityPredictor", "StepTimePredictor"]


@dataclass(frozen=True, slots=True)
class Predictors:
    output_length: OutputLengthPredictor = field(default_factory=OutputLengthPredictor)
    prompt_length: PromptLengthPredictor = field(default_factory=PromptLengthPredictor)
    quality: QualityPredictor = field(default_factory=QualityPredictor)
    step_time: StepTimePredictor = field(default_factory=StepTimePredictor)
