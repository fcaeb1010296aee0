"""The registry of MoE architectures: every file here that defines one `...Family` class is found by itself.

To add a family, add one file; nothing outside it may change.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import cast

from services.model.errors import CheckpointError
from services.model.families.base import Family


def families() -> tuple[Family, ...]:
    """One instance of every family, in the order of their file names."""
    found: list[Family] = []
    for module_info in sorted(pkgutil.iter_modules(__path__), key=lambda info: info.name):
        if module_info.name == "base":
            continue
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        found += [
            cast(Family, member())
            for name, member in sorted(vars(module).items())
            if inspect.isclass(member) and name.endswith("Family") and member.__module__ == module.__name__
        ]
    return tuple(found)


def family_of(config: Mapping[str, object]) -> Family:
    """The family that reads checkpoints with this `config.json`."""
    known = families()
    for family in known:
        if family.accepts(config):
            return family
    names = ", ".join(family.name for family in known)
    raise CheckpointError(f"config.json: model_type {config.get('model_type')!r} is not of a known family; known are {names}")
