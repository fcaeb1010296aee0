"""What was computed, kept by a content key of its inputs: one JSON line a run, appended when it is done. An interrupted line is dropped."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from services.runtime.plain import to_plain

ROOT = Path(__file__).resolve().parents[2]
# What any run may depend on besides the module of its function. Another byte in one of these, and everything is computed anew.
SHARED = ("services/core", "loadgen/simulator", "loadgen/scenarios", "loadgen/reproduce/runs.py")


class Store:
    """Runs of one output folder. A context manager; one process at a time."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.read_bytes() if path.exists() else b""
        lines = whole.split(b"\n")
        self._known: dict[str, Any] = {}
        for line in lines[:-1]:
            kept = json.loads(line)
            self._known[kept["key"]] = kept["result"]
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.seek(len(whole) - len(lines[-1]))
        self._file.truncate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def put(self, key: str, about: Any, result: Any) -> None:
        """`result` must be JSON without NaN; raises ValueError otherwise."""
        line = json.dumps({"key": key, "of": about, "result": result}, allow_nan=False, separators=(",", ":"))
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        self._known[key] = json.loads(line)["result"]


def key_of(function: Callable[..., Any], given: Any) -> str:
    return keys_of(function, [given])[0]


def keys_of(function: Callable[..., Any], inputs: Iterable[Any]) -> list[str]:
    """Of the function, the source of its module and of the `_*.py` beside it that it imports, what every run shares, and each input."""
    module = Path(function.__code__.co_filename).resolve()
    code = sources(*SHARED, *sorted(str(path.relative_to(ROOT)) for path in _with_imported(module)))
    about = f"{function.__module__}.{function.__qualname__}\0{code}\0"
    texts = (about + json.dumps(to_plain(given), sort_keys=True) for given in inputs)
    return [hashlib.sha256(text.encode()).hexdigest()[:20] for text in texts]


@cache
def sources(*places: str) -> str:
    """Hash over the files of these files and folders: Python, TOML, JSON, templates. Paths are relative to the root of the checkout."""
    digest = hashlib.sha256()
    for path in sorted({file for place in places for file in _files(ROOT / place)}):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _with_imported(module: Path) -> set[Path]:
    """The module, and the files `_*.py` of its folder that it imports, they import, and so on."""
    found, left = set[Path](), [module]
    while left:
        path = left.pop()
        found.add(path)
        imported = re.findall(r"^from [\w.]+\.(_\w+) import", path.read_text(encoding="utf-8"), re.MULTILINE)
        left += [beside for name in imported if (beside := path.parent / f"{name}.py").is_file() and beside not in found]
    return found


def _files(place: Path) -> Iterable[Path]:
    if place.is_file():
        return (place,)
    return (path for path in place.rglob("*") if path.suffix in (".py", ".toml", ".json", ".j2"))
