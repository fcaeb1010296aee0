"""Finds allocations, groupings and triggers by name from the files of a package: one file is one entry, nothing else to edit.

The name is the file's name with dashes (`mc_smoe.py` is "mc-smoe"); files that begin with an underscore are not entries.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import Any

from services.core.merging.errors import OptionError
from services.core.naming import nearest


def names(package: str) -> tuple[str, ...]:
    """Every registered name of a package, sorted."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(m.name.replace("_", "-") for m in pkgutil.iter_modules(path) if not m.name.startswith("_")))


def optional_entry(package: str, name: str, attribute: str) -> Any | None:
    """The `attribute` of the file registered under `name`, or None where the file does without."""
    return getattr(_module(package, name), attribute, None)


def entry(package: str, name: str, attribute: str) -> Any:
    """The `attribute` of the file registered under `name`; raises OptionError naming what there is."""
    return getattr(_module(package, name), attribute)


def _module(package: str, name: str) -> ModuleType:
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1].removesuffix("s")
        there_are = f"there are {', '.join(known)}"
        raise OptionError(f"{kind} {name!r} is unknown; {nearest(name, known, there_are)}")
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")
