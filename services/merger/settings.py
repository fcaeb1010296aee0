"""Settings of the cloud merger: `MOEDGE_MERGER_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.core.merging.recipes import PRODUCT
from services.runtime.failpoints import MERGER_POINTS, Failpoint
from services.runtime.settings import ServiceSettings


class MergerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MOEDGE_MERGER_", extra="forbid", frozen=True)

    model: str = Field(description="checkpoint directory or hub id of the base model")
    tasks: str = Field("toy", description="task set whose calibration split profiles and measures models: toy, a JSONL file, DATASET:PATH")
    cache_dir: Path = Field(Path("~/.cache/moedge/merger"), description="where builds, calibration and alignment are kept")
    cache_limit_bytes: int = Field(8 << 30, gt=0, description="builds used least recently are dropped above this")
    dtype: str = Field("float32", description="float32, bfloat16 or float16: what every weight is held and shipped in")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    max_prompt_tokens: int | None = Field(None, gt=0, description="unset: what the checkpoint's tokenizer says")
    method: str = Field(PRODUCT.method, description="merge method of requests that do not say")
    allocation: str = Field(PRODUCT.allocation, description="how experts are shared out over layers, for requests that do not say")
    grouping: str = Field(PRODUCT.grouping, description="which experts become one, for requests that do not say")
    recovery_steps: int = Field(0, ge=0, description="optimiser steps of recovery after averaging, for requests that do not say")
    reserve_bytes: int = Field(0, ge=0, description="memory of every edge that no model may take")
    profiled_items: int = Field(512, gt=0, description="calibration items of each task type that profile the base model, once")
    prepared_budgets_bytes: tuple[int, ...] = Field(
        (),
        description="at start, experts are aligned for merges to these memories: [2000000000]",
    )
    measured_items: int = Field(64, gt=0, description="calibration items of each task type that measure each build")
    max_waiting_builds: int = Field(32, gt=0, description="different builds that may wait; more are refused")
    failpoint: str = Field("", description="for tests: NAME:kill or NAME:sleep=SECONDS at a step of an update (runtime/failpoints.py)")

    @field_validator("prepared_budgets_bytes")
    @classmethod
    def _above_zero(cls, budgets_bytes: tuple[int, ...]) -> tuple[int, ...]:
        if any(budget <= 0 for budget in budgets_bytes):
            raise ValueError("a memory must be above 0 bytes")
        return budgets_bytes

    @field_validator("failpoint")
    @classmethod
    def _known_failpoint(cls, text: str) -> str:
        Failpoint.parse(text, MERGER_POINTS)
        return text
