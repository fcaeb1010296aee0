"""Experiments of the ONTO/JTOM paper, one file each; the file's name is the experiment's name. To add one, add a file that defines
`EXPERIMENT`. Nothing else is to be edited. Files that begin with an underscore are not experiments.

Contract: `run` gets everything from its context, computes what takes long through `context.map` (which remembers it and shows progress),
and returns tables, plots and claims. Verdicts come from `loadgen/reproduce/rules.py`. It draws and writes nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loadgen.reproduce.context import Context
from loadgen.reproduce.errors import ExperimentError
from loadgen.reproduce.values import Result
from services.core.naming import nearest

ALL = "all"
FIRST = ("setup", "fig2", "table1", "fig3", "fig4", "table3", "table4", "table5", "table6")  # the paper's order; the others follow by name


@dataclass(frozen=True, slots=True)
class Experiment:
    """`title` heads its section, `about` is one sentence on what it looks at."""

    title: str
    about: str
    run: Callable[[Context], Result]


def names() -> tuple[str, ...]:
    """Every registered name, the paper's figures and tables first."""
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")}
    return (*(name for name in FIRST if name in found), *sorted(found - set(FIRST)))


def chosen(given: Sequence[str]) -> tuple[str, ...]:
    """These names once each, in the order of `names`; `all` means every one. Raises ExperimentError for a name that is not registered."""
    for name in given:
        if name != ALL and name not in names():
            hint = nearest(name, names(), f"there are {', '.join(names())}, all")
            raise ExperimentError(f"experiment {name!r} is unknown; {hint}")
    return tuple(name for name in names() if name in given or ALL in given)


def experiment(name: str) -> Experiment:
    made: Experiment = importlib.import_module(f"{__name__}.{name}").EXPERIMENT
    return made
