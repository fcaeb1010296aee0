"""Where things are when nothing is said: the demo model of this checkout, caches, the default target and output folder."""

from __future__ import annotations

import re
from pathlib import Path

from loadgen.cli.console import CommandError

DEFAULT_TARGET = "127.0.0.1:50051-50059"
DEFAULT_PORT = 50051
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def checkout() -> Path:
    """The root of the checkout (or of site-packages, where nothing but the packages is)."""
    return Path(__file__).resolve().parents[2]


def model_or_demo(model: str | None) -> str:
    """The model asked for, or the demo model of the checkout. What is plainly not there is said before torch is imported."""
    if model is not None:
        if not Path(model).expanduser().is_dir() and not _HUB_ID.fullmatch(model):
            raise CommandError(f"model: {model} is neither a directory nor a hub id such as google/switch-base-32")
        return model
    demo = checkout() / "infra" / "demo-model"
    if not (demo / "config.json").exists():
        raise CommandError(f"{demo}: the demo model is not there; make it with `make demo-model`, or give --model DIRECTORY")
    return str(demo)


def demo_edges() -> Path:
    """The edges file of the demonstration."""
    return checkout() / "infra" / "edges" / "demo.toml"


def tasks_or_toy(tasks: str | None, model: str | None) -> str:
    """The task source asked for; without one, the toy world for the demo model and a `tasks.jsonl` beside any other."""
    if tasks is not None:
        return tasks
    if model is None:
        return "toy"
    beside = Path(model) / "tasks.jsonl"
    if beside.exists():
        return str(beside)
    if (checkout() / "infra" / "demo-model").resolve() == Path(model).resolve():
        return "toy"
    raise CommandError("tasks: --model is given and there is no tasks.jsonl in it; give --tasks toy, a JSONL file or DATASET:PATH")


def cache_or_home(cache: Path | None) -> Path:
    """The cache folder asked for, or the one of the user."""
    return (cache or Path("~/.cache/moedge")).expanduser()
