"""Settings of an edge worker: `MOEDGE_WORKER_*`. What the edge server is (memory, speed, links) comes from an edges file instead."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.runtime.failpoints import WORKER_POINTS, Failpoint
from services.runtime.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="MOEDGE_WORKER_", extra="forbid", frozen=True)

    edges_file: Path | None = Field(None, description="edges file (TOML) that describes this edge server")
    edge: str | None = Field(None, description="its name in the edges file; may be left out where the file has one edge")
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="what this edge server is called; unset: as in the edges file"
    )
    device: Literal["auto", "cpu", "cuda"] | None = Field(None, description="what computes; unset: as in the edges file")
    replicas: bool = Field(
        False,
        description="several workers share this edge description and this cache_dir: each is the first free one of NAME-1, NAME-2 ...",
    )
    join: str | None = Field(None, description="host:port of a broker that knows Kafka, Redis and the merger")
    join_token_file: Path | None = Field(None, description="token that lets this worker join over TLS: scope `join` at the broker")
    merger_address: str | None = Field(None, description="host:port of the merger; unset: what the joined broker says")
    base_model: str = Field("", description="id of the base model; empty: the merger's only one")
    cache_dir: Path = Field(Path("~/.cache/moedge/worker"), description="where versions and blobs are kept, a directory an edge")
    cache_limit_bytes: int = Field(4 << 30, gt=0, description="blobs that no live version needs are dropped above this")
    swap_reserve_bytes: int | None = Field(
        None,
        ge=0,
        description="share of the edge's memory kept for the changed groups of an update; what does not fit drains the edge first. "
        "Unset: that memory is there besides",
    )
    fetch_bytes_per_s: float = Field(
        100e6, gt=0, description="of an update, while the version before serves; receiving faster takes processors from tasks"
    )
    max_prompt_tokens: int | None = Field(None, gt=0, description="unset: what the checkpoint's tokenizer says")
    max_new_tokens: int = Field(256, gt=0, description="most tokens that one task may ask for")
    default_max_tokens: int = Field(64, gt=0, description="for tasks that do not say")
    report_tasks: int = Field(20, ge=20, description="fewest tasks that an activation report sums over")
    report_interval_s: float = Field(2.0, gt=0, description="activation reports come at most this often")
    entry_interval_s: float = Field(0.5, gt=0, le=1.0, description="the registry entry is renewed this often")
    stuck_after_s: float = Field(30.0, gt=0, description="a step that lasts longer makes the worker unhealthy")
    torch_threads: int = Field(0, ge=0, description="threads of one tensor operation; 0: torch's own choice")
    failpoint: str = Field("", description="for tests: NAME:kill or NAME:sleep=SECONDS at a step of an update (runtime/failpoints.py)")

    @field_validator("failpoint")
    @classmethod
    def _known_failpoint(cls, text: str) -> str:
        Failpoint.parse(text, WORKER_POINTS)
        return text
