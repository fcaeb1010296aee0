"""Writes the Grafana dashboard, `python infra/grafana/build.py`: one board for the fleet, one edge and the merges.

A test compares `dashboards/moedge.json` with what this gives, and every metric named here with what the services export.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from panels import ROWS, Panel, Row

OUT = Path(__file__).with_name("dashboards") / "moedge.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH = 24
HEIGHT = 7


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append({"type": "row", "title": row.title, "collapsed": False, "gridPos": _place(0, y, WIDTH, 1), "panels": []})
        y = _add(panels, row, y + 1)
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": "moedge",
        "title": "moedge",
        "description": "Edge servers, what they serve, and how their models change. Rows: the fleet, one edge, merges.",
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "5s",
        "time": {"from": "now-15m", "to": "now"},
        "timezone": "browser",
        "tags": ["moedge"],
        "templating": {"list": [_edge_variable()]},
        "annotations": {"list": [_updates()]},
        "panels": panels,
    }


def _add(panels: list[dict[str, Any]], row: Row, y: int) -> int:
    """Panels from left to right, a new line where one does not fit; where the next row begins."""
    x = 0
    for panel in row.panels:
        if x + panel.width > WIDTH:
            x, y = 0, y + HEIGHT
        panels.append(_panel(panel, _place(x, y, panel.width, HEIGHT)))
        x += panel.width
    return y + HEIGHT


def _panel(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    is_table = panel.kind == "table"
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.largest is not None:
        defaults["max"] = panel.largest
    if panel.kind == "timeseries":
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 0, "stacking": {"mode": "normal" if panel.stacked else "none"}}
    made: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": expression,
                "legendFormat": legend,
                "instant": is_table,
                "range": not is_table,
                "format": "table" if is_table else "time_series",
            }
            for number, (legend, expression) in enumerate(panel.queries.items())
        ],
    }
    if panel.kind == "timeseries":
        made["options"] = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    elif is_table:
        made["transformations"] = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}]
    else:
        made["options"] = {"colorMode": "none", "graphMode": "none", "reduceOptions": {"calcs": ["lastNotNull"]}}
    return made


def _edge_variable() -> dict[str, Any]:
    return {
        "name": "edge",
        "label": "Edge",
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": "label_values(moedge_edge_ready, edge)", "refId": "edge"},
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
    }


def _updates() -> dict[str, Any]:
    return {
        "name": "updates",
        "enable": True,
        "datasource": DATASOURCE,
        "expr": 'increase(moedge_edge_updates_total{outcome="swapped"}[30s]) > 0',
        "titleFormat": "{{edge}} serves a new version",
        "iconColor": "green",
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def rendered() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    OUT.write_text(rendered())
