"""One experiment's files: `result.json`, a CSV a table and a plot's data. What was written under the same key is read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadgen.reproduce.values import Bars, Cell, Heat, Lines, Panel, Plot, Result
from services.runtime.plain import to_plain

SCHEMA_VERSION = 1


def document(name: str, title: str, about: str, key: str, result: Result) -> dict[str, Any]:
    """The experiment as JSON-ready data."""
    return {"schema_version": SCHEMA_VERSION, "name": name, "title": title, "about": about, "key": key, **to_plain(result)}


def write_data(folder: Path, data: dict[str, Any], result: Result) -> None:
    """`result.json` last: where it stands, the others do too."""
    folder.mkdir(parents=True, exist_ok=True)
    for table in result.tables:
        _write_csv(folder / f"{table.name}.csv", table.columns, table.rows)
    for plot in result.plots:
        _write_csv(folder / f"{plot.name}-plot.csv", ("panel", "series", "x", "y", "ci95"), _points(plot))
    (folder / "result.json").write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_plots(folder: Path, plots: Sequence[Plot]) -> None:
    from loadgen.reproduce.plots import drawn  # what needs no plots needs no matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots:
        made = drawn(plot)
        (folder / f"{plot.name}.png").write_bytes(made.png)
        (folder / f"{plot.name}.svg").write_text(made.svg, encoding="utf-8")


def written(folder: Path, key: str) -> dict[str, Any] | None:
    """What stands in the folder, if it was made of the same inputs and is whole."""
    try:
        data: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if data.get("key") == key and data.get("schema_version") == SCHEMA_VERSION else None


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]] | Iterator[Sequence[Cell]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _points(plot: Plot) -> Iterator[tuple[Cell, ...]]:
    for panel in plot.panels:
        yield from ((panel.title, *point) for point in _panel_points(panel))


def _panel_points(panel: Panel) -> Iterator[tuple[Cell, ...]]:
    match panel:
        case Lines():
            for line in panel.lines:
                widths = line.ci95 or (None,) * len(line.x)
                yield from ((line.label, x, y, width) for x, y, width in zip(line.x, line.y, widths, strict=True))
        case Bars():
            widths = panel.ci95 or (None,) * len(panel.values)
            yield from ((label, None, y, width) for label, y, width in zip(panel.labels, panel.values, widths, strict=True))
        case Heat():
            for row, values in zip(panel.rows, panel.values, strict=True):
                yield from ((row, column, y, None) for column, y in zip(panel.columns, values, strict=True))
