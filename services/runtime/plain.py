"""Between the core's values and plain ones that JSON holds: dataclasses, enums, arrays, mappings, sequences. Knows no file and no message.

Floats keep every bit (JSON writes the shortest text that reads back as the same number), so a value that was written is the value read.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np


def to_plain(value: object) -> Any:
    """Dicts, lists, strings, numbers, booleans and None only. Raises TypeError for what has no plain form."""
    match value:
        case Enum():
            return value.value
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.decode()
        case np.ndarray() | np.generic():
            return value.tolist()
        case Mapping():
            return {str(key): to_plain(item) for key, item in value.items()}
        case Set():
            return sorted(map(to_plain, value))
        case Sequence():
            return [to_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} has no plain form")


def from_plain(kind: Any, value: Any) -> Any:
    """The value that `to_plain` was given, where `kind` is its declared type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else from_plain(next(a for a in arguments if a is not type(None)), value)
    if origin is np.ndarray:
        return np.array(value, dtype=get_args(arguments[1])[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: from_plain(arguments[1], item) for key, item in value.items()}
    if isinstance(origin, type) and issubclass(origin, Set):
        return frozenset(from_plain(arguments[0], item) for item in value)
    if isinstance(origin, type) and issubclass(origin, tuple | Sequence):
        kinds = arguments if origin is tuple and Ellipsis not in arguments else [arguments[0]] * len(value)
        return tuple(from_plain(one, item) for one, item in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        return kind(**{name: from_plain(hints[name], item) for name, item in value.items()})
    if isinstance(kind, type) and issubclass(kind, Enum | bytes):
        return value.encode() if issubclass(kind, bytes) else kind(value)
    return value
