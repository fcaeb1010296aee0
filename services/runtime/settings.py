"""Settings from the environment: one class a service, shared fields here, unknown variables refused by name.

`MOEDGE_KAFKA_BOOTSTRAP` sets a shared field for every service, `MOEDGE_BROKER_KAFKA_BOOTSTRAP` for the broker alone and wins.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from services.core.naming import nearest
from services.runtime.errors import SettingsError

PREFIX = "MOEDGE_"

# First words of variables that belong to some service; a service checks its own word only.
SERVICE_WORDS = ("BROKER", "WORKER", "CONTROLLER", "MERGER", "STACK", "TEST")


# Variables that set options of the `moedge` command; services leave them alone.
COMMAND_VARIABLES = (f"{PREFIX}TARGET", f"{PREFIX}CA", f"{PREFIX}TOKEN_FILE")


class _SharedSource(EnvSettingsSource):
    """`MOEDGE_<FIELD>` for the fields that every service has."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if name in ServiceSettings.model_fields}


class ServiceSettings(BaseSettings):
    """What every service has. Subclass with `model_config = SettingsConfigDict(env_prefix="MOEDGE_<SERVICE>_")`.

    Build with `load(**overrides)`: bad and unknown settings raise `SettingsError` with one line each.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, nested_model_default_partial_update=False)

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(0, ge=0, le=65535, description="port to listen on; 0 takes any free one")
    advertise: str | None = Field(None, description="address that others reach this service at; empty: what it listens on")
    kafka_bootstrap: str | None = Field(None, description="host:port of Kafka; unset: an event log inside the process")
    kafka_replication: int = Field(1, ge=1, description="replication of topics that are created")
    redis_url: str | None = Field(None, description="redis://host:port; unset: inside the process")
    log_format: Literal["human", "json"] = Field("human", description="human or json, on stderr")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG, INFO, WARNING or ERROR")
    metrics_port: int | None = Field(None, ge=0, le=65535, description="port of Prometheus metrics, HTTP /metrics; unset: none, 0: any")
    otlp_endpoint: str | None = Field(None, description="host:port or URL of an OTLP/gRPC collector that traces go to; unset: nowhere")
    tls_cert: Path | None = Field(None, description="certificate (PEM) of this service's role; with tls_key and tls_ca calls go over TLS")
    tls_key: Path | None = Field(None, description="its private key (PEM, not encrypted)")
    tls_ca: Path | None = Field(None, description="certificate (PEM) of the authority that signed the certificates of all services")
    drain_s: float = Field(5.0, ge=0.0, le=3600.0, description="how long tasks in flight may take to finish on SIGTERM")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        shared = _SharedSource(settings_cls, env_prefix=PREFIX)
        return init_settings, env_settings, shared

    @model_validator(mode="after")
    def _whole_tls(self) -> Self:
        given = {name: getattr(self, name) for name in ("tls_cert", "tls_key", "tls_ca")}
        missing = [name for name, path in given.items() if path is None]
        if missing and len(missing) < len(given):
            raise ValueError(f"tls_cert, tls_key and tls_ca go together; missing: {', '.join(missing)}")
        return self

    @classmethod
    def variable(cls, name: str) -> str:
        """The environment variable of a setting, for messages."""
        return f"{_env_prefix(cls)}{name.upper()}"

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """From the environment, overrides (from the command line) first. None among the overrides means "not given"."""
        refuse_unknown(cls, os.environ)
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise SettingsError("\n".join(_line(cls, issue["loc"], issue["msg"]) for issue in error.errors())) from None


def refuse_unknown(settings: type[ServiceSettings], environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` for each variable that looks meant for this service and is none of its settings."""
    own = _env_prefix(settings)
    known = {f"{own}{name.upper()}" for name in settings.model_fields} | {
        f"{PREFIX}{name.upper()}" for name in ServiceSettings.model_fields
    }
    others = tuple(f"{PREFIX}{word}_" for word in SERVICE_WORDS if f"{PREFIX}{word}_" != own)
    theirs = (*others, *COMMAND_VARIABLES)
    unknown = [name for name in sorted(environ) if name.startswith(PREFIX) and name not in known and not name.startswith(theirs)]
    if unknown:
        raise SettingsError("\n".join(f"{name}: no such setting{_nearest(name, known)}" for name in unknown))


def _env_prefix(settings: type[ServiceSettings]) -> str:
    return str(settings.model_config.get("env_prefix", PREFIX))


def _nearest(name: str, known: set[str]) -> str:
    return "; " + nearest(name, known, f"known: {', '.join(sorted(known))}")


def _line(settings: type[ServiceSettings], location: tuple[int | str, ...], message: str) -> str:
    message = message.removeprefix("Value error, ")
    if not location:  # a rule over several settings
        return f"{_env_prefix(settings)}*: {message}"
    name = str(location[0])
    if name in settings.model_fields:
        if message == "Field required":
            message = f"missing; give {settings.model_fields[name].description or 'it'}"
        return f"{_env_prefix(settings)}{name.upper()}: {message}"
    names = set(settings.model_fields)
    return f"{name}: no such setting{_nearest(name, names)}"
