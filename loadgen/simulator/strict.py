"""Reads a TOML table into a dataclass of plain fields: unknown keys and wrong types are refused with the place and the nearest name."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from loadgen.simulator.errors import ScenarioError
from services.core.naming import nearest

T = TypeVar("T")
_KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}


def known_only(table: object, known: Collection[str], where: str) -> dict[str, Any]:
    """The table itself; raises ScenarioError for a key that is not known, or where there is no table."""
    if not isinstance(table, dict):
        raise ScenarioError(f"{where}: a table is expected, not {type(table).__name__}")
    for key in table:
        if key not in known:
            hint = nearest(key, known, f"known are {', '.join(sorted(known))}")
            raise ScenarioError(f"{where}: {key} is unknown; {hint}")
    return table


def read_table(table: object, kind: type[T], where: str, **given: Any) -> T:
    """`given` are fields that were read elsewhere; the table may not have them."""
    fields = {f.name: f for f in dataclasses.fields(kind) if f.name not in given}  # type: ignore[arg-type]
    checked = known_only(table, fields, where)
    hints = typing.get_type_hints(kind)
    values = {name: _value(value, hints[name], f"{where}.{name}") for name, value in checked.items()}
    required = [n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ScenarioError(f"{where}: {missing[0]} is missing; give it")
    try:
        return kind(**values, **given)
    except ValueError as error:
        raise ScenarioError(f"{where}: {error}") from error


def _value(value: object, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(value, next(h for h in typing.get_args(hint) if h is not types.NoneType), where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ScenarioError(f"{where}: a list is expected, not {value!r}")
        return tuple(_value(item, typing.get_args(hint)[0], where) for item in value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise ScenarioError(f"{where}: a table is expected, not {value!r}")
        inner = typing.get_args(hint)[1]
        return {str(key): _value(item, inner, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return read_table(value, typing.cast(type[Any], hint), where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ScenarioError(f"{where}: {value!r} is no {_KINDS.get(hint, hint.__name__)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ScenarioError(f"{where}: {value!r} is not finite")
    return value
