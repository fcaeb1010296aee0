"""Merge triggers: rules that say an edge should re-merge now. One file each, registered by its name.

Contract: a file defines a class `Trigger`, constructed with its options as keywords, that satisfies `MergeTrigger`. A trigger keeps
nothing between calls: what it must remember of an edge is in the `TriggerState` it is given and gives back.
"""

from __future__ import annotations

import inspect
from typing import Any, cast

from services.core.merging import registry
from services.core.merging.errors import OptionError
from services.core.merging.triggers._base import Deployed, MergeTrigger, TriggerDecision, TriggerState

__all__ = ["Deployed", "MergeTrigger", "TriggerDecision", "TriggerState", "names", "options", "trigger"]


def trigger(name: str, **given: object) -> MergeTrigger:
    """The trigger registered under `name` with the given options; raises OptionError for a name or an option that does not exist."""
    kind = registry.entry(__name__, name, "Trigger")
    unknown = sorted(set(given) - set(options(name)))
    if unknown:
        raise OptionError(f"trigger {name!r} has no option {unknown[0]!r}. It has: {', '.join(options(name))}")
    return cast(MergeTrigger, kind(**given))


def options(name: str) -> tuple[str, ...]:
    kind: Any = registry.entry(__name__, name, "Trigger")
    return tuple(inspect.signature(kind).parameters)


def names() -> tuple[str, ...]:
    return registry.names(__name__)
