"""Settings of an offload broker: `MOEDGE_BROKER_*`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.core import defaults
from services.core.offload import policies
from services.runtime.settings import ServiceSettings
from services.runtime.store import WORK_MAX_AGE_S


class BrokerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MOEDGE_BROKER_", extra="forbid", frozen=True)

    broker_id: str = Field("", max_length=64, description="name among the brokers; empty: made up at each start")
    merger_address: str | None = Field(None, description="host:port of the merger: for profiles, and for workers that join")
    base_model: str = Field("", description="id of the base model; empty: the one that the edges serve")
    join_kafka_bootstrap: str | None = Field(None, description="Kafka's host:port for workers on other machines; unset: the broker's")
    join_redis_url: str | None = Field(None, description="Redis as workers on other machines reach it; unset: the broker's")
    join_merger_address: str | None = Field(None, description="the merger as workers on other machines reach it; unset: the broker's")

    tokens_file: Path | None = Field(None, description="hashes of the tokens that users may show (TOML); required with TLS")

    policy: str = Field(defaults.POLICY, description=f"offload policy: {', '.join(policies.names())}")
    ties: str = Field("random", pattern="^(random|lowest-id)$", description="how ONTO breaks exact ties; lowest-id is the paper's reading")
    seed: int | None = Field(None, ge=0, description="of random choices; unset: drawn at the start, so that brokers differ")
    quality_scale: float = Field(1.0, ge=0.0, description="seconds that a quality of 1 is worth to a user with alpha 1")

    default_alpha: float = Field(0.5, gt=0.0, le=1.0, description="for tasks that do not say")
    default_max_tokens: int = Field(64, ge=1, description="for tasks that do not say")
    default_region: str = Field("", description="for tasks that do not say; empty: `default`, else the region that most edges link to")
    max_tokens_limit: int = Field(1024, ge=1, description="most tokens that a task may ask for")
    max_prompt_bytes: int = Field(1 << 20, ge=1, description="longest prompt in bytes")
    max_tasks: int = Field(2048, ge=1, description="tasks that may be in flight through this broker")

    default_deadline_s: float = Field(120.0, gt=0.0, description="for calls that come without a deadline")
    deadline_margin_s: float = Field(0.05, ge=0.0, description="kept of the remaining time when a task is passed on")
    max_attempts: int = Field(3, ge=1, description="edges that one task may be sent to, one after the other")
    emulate_links: bool = Field(True, description="sleep the link times of the edges file, so that they are felt")

    poll_s: float = Field(0.1, gt=0.0, description="the registry and the other brokers' work are read this often")
    publish_s: float = Field(0.05, gt=0.0, description="own work outstanding is published this often when it changed")
    republish_s: float = Field(0.5, gt=0.0, description="and this often when it did not")
    heartbeat_s: float = Field(1.0, gt=0.0, description="every edge is asked for its status this often")
    heartbeat_misses: int = Field(3, ge=1, description="unanswered heartbeats in a row after which an edge counts as unreachable")

    controller_group: str = Field("moedge-controller", description="the merge controller's consumer group, whose lag `moedge status` shows")
    lag_s: float = Field(5.0, gt=0.0, description="Kafka is asked for that lag this often")

    retention_s: float = Field(120.0, ge=0.0, description="finished tasks are kept this long: for scores and repeated idempotency keys")
    retained_tasks: int = Field(4096, ge=1, description="and at most so many of them")

    record: Path | None = Field(None, description="file that every call into the offload engine is kept in, to replay; unset: none")
    record_limit_bytes: int = Field(256 << 20, ge=0, description="at most so much of it")

    @field_validator("policy")
    @classmethod
    def _known(cls, policy: str) -> str:
        if policy.replace("-", "_") not in policies.names():
            raise ValueError(f"{policy!r} is no offload policy; choose one of {', '.join(policies.names())}")
        return policy.replace("-", "_")

    @field_validator("poll_s", "publish_s", "republish_s")
    @classmethod
    def _fresh(cls, interval_s: float) -> float:
        if interval_s >= WORK_MAX_AGE_S:
            raise ValueError(f"must be below {WORK_MAX_AGE_S:g} s: older work is stale to the other brokers")
        return interval_s
