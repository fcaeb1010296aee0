"""The registry of MoE architectures: every file here that has a `FAMILY` is found by itself.

To add a family, add one file; nothing outside it may change.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping

from services.model.errors import CheckpointError
from services.model.families.base import Family


def families() -> tuple[Family, ...]:
    """Every family, in the order of their file names."""
    modules = [importlib.import_module(f"{__name__}.{name}") for name in sorted(info.name for info in pkgutil.iter_modules(__path__))]
    return tuple(module.FAMILY for module in modules if hasattr(module, "FAMILY"))


def family_of(config: Mapping[str, object]) -> Family:
    """The family that reads checkpoints with this `config.json`."""
    known = families()
    for family in known:
        if family.accepts(config):
            return family
    names = ", ".join(family.name for family in known)
    raise CheckpointError(f"config.json: model_type {config.get('model_type')!r} is not of a known family; known are {names}")
