"""Writes a report: `report.json`, `report.html` and the plots as PNG files into one folder."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from loadgen.report.document import document, write_json
from loadgen.report.page import page
from loadgen.report.plots import all_plots
from loadgen.report.values import ReportInput


def write_report(directory: Path, report: ReportInput, created_at: datetime) -> dict[str, Any]:
    """The document that was written. The folder is made where it is missing; files of an earlier report are overwritten."""
    data = document(report, created_at)
    write_json(directory / "report.json", data)
    plots = all_plots(report, data)
    for plot in plots:
        plot.save(directory)
    (directory / "report.html").write_text(page(data, plots), encoding="utf-8")
    return data
