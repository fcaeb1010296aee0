"""Options that several commands share, with one help text each."""

from __future__ import annotations

import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from loadgen.cli.places import DEFAULT_TARGET
from services.core.merging.recipes import BEST, FITTED
from services.core.naming import nearest


def _files(package: str) -> tuple[str, ...]:
    """Registered names, one a file; without importing the package, so that `moedge --help` loads no numpy."""
    found = importlib.util.find_spec(package)
    assert found is not None
    return tuple(sorted(m.name for m in pkgutil.iter_modules(found.submodule_search_locations) if not m.name.startswith("_")))


def _one_of(known: tuple[str, ...]) -> Callable[[str], str]:
    """With dashes or underscores; as it is known by."""
    by_name = {name.replace("-", "_"): name for name in known}

    def checked(name: str) -> str:
        found = by_name.get(name.replace("-", "_"), name)
        if found and found not in known:  # an empty one is the command's own
            raise typer.BadParameter(f"{name!r} is unknown; {nearest(name, known, 'there are ' + ', '.join(known))}")
        return found

    return checked


def above_zero(value: float | None) -> float | None:
    """Typer has least values, but no bounds that are left out."""
    if value is not None and not value > 0:
        raise typer.BadParameter(f"{value:g}: it must be above 0")
    return value


def prompt_of(argument: str) -> str:
    """The prompt itself, or what standard input holds where it is `-`."""
    return sys.stdin.read().strip() if argument == "-" else argument


Prompt = Annotated[str, typer.Argument(help="The prompt; - reads standard input.", metavar="PROMPT")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables; messages go to stderr.")]
Target = Annotated[
    str,
    typer.Option(
        envvar="MOEDGE_TARGET", help="Address of the broker; of a range of ports the first that answers.", metavar="HOST:PORT[-PORT]"
    ),
]
Ca = Annotated[
    Path | None,
    typer.Option("--ca", envvar="MOEDGE_CA", help="Authority of a secured stack (ca.pem of `moedge certs`): talk TLS.", metavar="FILE"),
]
TokenFile = Annotated[
    Path | None, typer.Option(envvar="MOEDGE_TOKEN_FILE", help="File with your token for a secured stack.", metavar="FILE")
]
Model = Annotated[
    str | None, typer.Option(help="Checkpoint directory or hub id; without it the demo model of the checkout.", metavar="DIR|HUB-ID")
]
Tasks = Annotated[
    str | None,
    typer.Option(
        help="Task source: toy, a JSONL file of {task, id, prompt, references}, or DATASET:PATH (copa, multirc, squad, wikiqa, winogrande; "
        "several with commas between). Without it: toy for the demo model, tasks.jsonl beside any other.",
        metavar="SOURCE",
    ),
]
Edges = Annotated[str, typer.Option(help="How many edge servers (small, medium, large in turn), or an edges file.", metavar="N|FILE")]
_POLICIES = _files("services.core.offload.policies")
_TRIGGERS = _files("services.core.merging.triggers")
POLICIES, TRIGGERS = ", ".join(_POLICIES), ", ".join(_TRIGGERS)
Policy = Annotated[str, typer.Option(callback=_one_of(_POLICIES), help=f"Offload policy: {POLICIES}.")]
Trigger = Annotated[str, typer.Option(callback=_one_of(_TRIGGERS), help=f"Merge trigger: {TRIGGERS}.")]
Dtype = Annotated[str, typer.Option(help="Type of the weights served: float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; cuda fails where there is none.")]
QualityScale = Annotated[
    float,
    typer.Option(callback=above_zero, help="Seconds that a full point of quality is worth to a user with alpha 1.", metavar="SECONDS"),
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that torch uses in an operation; several edges share the cores.")]
Cache = Annotated[
    Path | None, typer.Option(help="Folder for builds and blobs, kept between runs; without it ~/.cache/moedge.", metavar="DIR")
]
Seed = Annotated[int, typer.Option(min=0, help="Of arrivals, users and mixes: the same seed gives the same load.")]
Alpha = Annotated[
    float | None, typer.Option(help="How much quality is worth to you, above 0 and up to 1; without it the broker's default.")
]
TaskType = Annotated[str, typer.Option("--task", help="Task type; without it the broker guesses from the prompt.", metavar="TYPE")]
Region = Annotated[str, typer.Option(help="Where the user is; links differ by region and edge. Default: the broker's.")]
MaxTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate at most; 0: the server's default.")]
_METHODS = tuple(sorted((BEST, FITTED, *(name.replace("_", "-") for name in _files("services.model.merges")))))
Method = Annotated[
    str,
    typer.Option(
        callback=_one_of(_METHODS),
        help="Method: m-smoe (the paper's merge), dominant, average; best measures and chooses; fitted packs each expert as needed.",
    ),
]
Allocation = Annotated[str, typer.Option(help="How layers share the experts kept: mc-smoe (the paper's), uniform, whole-tasks.")]
RecoverySteps = Annotated[
    int, typer.Option(min=0, help="Optimiser steps after averaging; they never see a scored prompt.", metavar="STEPS")
]
EXPERIMENTS = ", ".join(_files("loadgen.experiments"))
COMPRESSIONS = ", ".join(name.replace("_", "-") for name in _files("services.model.compressions"))
TARGET = DEFAULT_TARGET
DEFAULT_RECOVERY_STEPS = 0
