"""Settings of the merge controller: `MOEDGE_CONTROLLER_*`. Options that the chosen trigger does not have are not passed to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.core import defaults
from services.core.merging.recipes import PAPER, PRODUCT, Recipe
from services.core.merging.triggers import MergeTrigger, names, options, trigger
from services.runtime.settings import ServiceSettings


class ControllerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MOEDGE_CONTROLLER_", extra="forbid", frozen=True)

    merger_address: str = Field(description="host:port of the cloud merger")
    consumer_group: str = Field("moedge-controller", description="group that reads activation reports")

    trigger: str = Field(defaults.TRIGGER, description=f"merge trigger: {', '.join(names())}")
    interval_s: float | None = Field(
        None,
        gt=0,
        description="time between two checks of an edge, with jtom the initial one (the paper's delta); unset: the trigger's own",
    )
    adjustment_s: float = Field(20.0, ge=0, description="how much an update shortens and a kept version lengthens it (m)")
    threshold: float = Field(0.2, gt=0, le=1, description="activation shift that asks for an update (g)")
    min_tokens: int = Field(500, ge=1, description="routed tokens that a layer needs to count in the shift")
    mode: Literal["paper", "product"] = Field(
        "product", description="jtom: Algorithm 2 as printed with raw frequencies, or with mixes and guards"
    )
    confirm: bool = Field(True, description="jtom, product: a window within which traffic changed is confirmed on its newer half")
    confirm_s: float | None = Field(None, gt=0, description="jtom, product: when to look again; unset: interval_s")
    min_mix_change: float = Field(0.1, ge=0, le=1, description="jtom, product: an update whose mix moved less keeps the version")
    recent_tasks: int = Field(
        0, ge=0, description="jtom, product: look at about so many of the newest tasks at most; 0: all since the last decision"
    )
    cap_s: float | None = Field(None, gt=0, description="jtom, product: longest time between two checks; unset: ten times interval_s")

    quality_scale: float = Field(1.0, ge=0, description="portfolio: what a full point of quality is worth, in seconds, as at the broker")
    memory_s: float | None = Field(None, gt=0, description="portfolio: demand is averaged over so long; unset: 160")
    surprise: float | None = Field(
        None, ge=0, description="portfolio: standard deviations by which demand has to differ to have changed; unset: 4.5"
    )
    horizon_s: float | None = Field(None, gt=0, description="portfolio: within which an update has to pay for itself; unset: 240")
    min_saving: float | None = Field(
        None, ge=0, description="portfolio: least share of the fleet's predicted cost that an update is made for; unset: 0.005"
    )
    doubt: float | None = Field(None, ge=0, description="portfolio: standard deviations of demand that a saving has to survive; unset: 0.7")

    method: str = Field("", description="merge method; unset: best, in paper mode m-smoe")
    allocation: str = Field("", description="how experts are shared out; unset: whole-tasks, in paper mode mc-smoe")
    grouping: str = Field("", description="which experts become one; unset: router-logits")
    min_gain: float = Field(
        0.03, ge=0, le=1, description="product: a built version that promises less more quality than the present one is not rolled out"
    )
    recovery_steps: int = Field(0, ge=0, description="optimiser steps of recovery after averaging")
    keep_present: bool = Field(
        False, description="plan against the version an edge holds: fewer bytes to ship, fewer builds shared by edges"
    )

    tick_s: float = Field(0.25, gt=0, description="how often edges are looked at for a due check")
    cool_down_s: float = Field(0.0, ge=0, description="least time from a rollout to the next check")
    backoff_s: float = Field(5.0, gt=0, description="wait after a failed update; doubles with each")
    backoff_cap_s: float = Field(300.0, gt=0, description="longest such wait")
    manifest_timeout_s: float = Field(5.0, gt=0)
    build_timeout_s: float = Field(900.0, gt=0, description="deadline of one build at the merger")
    load_timeout_s: float = Field(300.0, gt=0, description="deadline of one rollout at an edge")
    forget_after_s: float = Field(
        600.0, gt=0, description="edges unseen for so long are dropped from memory; Redis keeps their state for a day"
    )

    record: Path | None = Field(None, description="file that every call into the merge engine is kept in, to replay; unset: none")
    record_limit_bytes: int = Field(256 << 20, ge=0, description="at most so much of it")

    @field_validator("trigger")
    @classmethod
    def _trigger_exists(cls, value: str) -> str:
        if value not in names():
            raise ValueError(f"no such trigger: {value!r}; there are {', '.join(names())}")
        return value

    @property
    def recipe(self) -> Recipe:
        """How builds are planned: what is set, else the product's recipe, or the paper's in paper mode."""
        usual = PAPER if self.mode == "paper" else PRODUCT
        return Recipe(self.method or usual.method, self.allocation or usual.allocation, self.grouping or usual.grouping)

    @property
    def trigger_options(self) -> dict[str, Any]:
        """What is set of what the trigger can be constructed with."""
        return {name: value for name in options(self.trigger) if (value := getattr(self, name, None)) is not None}

    def merge_trigger(self) -> MergeTrigger:
        return trigger(self.trigger, **self.trigger_options)
