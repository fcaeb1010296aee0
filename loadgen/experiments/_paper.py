"""The paper's printed figures, from `paper.toml`."""

from __future__ import annotations

import tomllib
from pathlib import Path

Figures = dict[str, list[float]]


def printed(table: str) -> Figures:
    """A table's rows by name. `table1` has a row `tasks` of names besides."""
    document = tomllib.loads((Path(__file__).parent / "paper.toml").read_text(encoding="utf-8"))
    return {name: [float(value) for value in row] for name, row in document[table].items() if not isinstance(row[0], str)}
