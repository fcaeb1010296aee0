"""What `up`, `replay` and others need to start an embedded stack: options of the command line as settings of the stack."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadgen.cli.console import CommandError
from loadgen.cli.places import cache_or_home, model_or_demo, tasks_or_toy


@dataclass(frozen=True, slots=True)
class StackOptions:
    """As given on the command line."""

    edges: str
    model: str | None
    tasks: str | None
    policy: str
    trigger: str
    quality_scale: float
    dtype: str
    device: str
    threads: int
    cache: Path | None
    method: str = ""  # of building versions; empty: as services have it


def stack_settings(chosen: StackOptions) -> dict[str, Any]:
    """Settings of `services.stack.StackSettings` by name, without importing torch. Names and files are checked before anything starts."""
    return {
        "model": model_or_demo(chosen.model),
        "tasks": tasks_or_toy(chosen.tasks, chosen.model),
        "edges": edges_of(chosen.edges),
        "policy": chosen.policy,
        "trigger": chosen.trigger,
        "quality_scale": chosen.quality_scale,
        "dtype": chosen.dtype,
        "device": chosen.device,
        "torch_threads": chosen.threads,
        "cache_dir": cache_or_home(chosen.cache),
        **({"merger": {"method": chosen.method}, "controller": {"method": chosen.method}} if chosen.method else {}),
    }


def edges_of(text: str) -> int | Path:
    """A number of default edges, or the path of an edges file."""
    if text.lstrip("-").isdigit():
        if not 1 <= int(text) <= 64:
            raise CommandError(f"edges: {text} is not in 1 to 64; for more, run workers of their own with moedge serve worker")
        return int(text)
    path = Path(text)
    if not path.is_file():
        raise CommandError(f"edges: {text!r} is neither a number nor an edges file; examples are in infra/edges")
    return path
