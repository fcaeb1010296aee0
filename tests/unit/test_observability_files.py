"""The dashboard is the one that its script makes, and every metric that it and the alerts name is one that the services export."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.unit.pico_stack import answered, running_stack

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARD = INFRA / "grafana" / "dashboards" / "moedge.json"
ALERTS = INFRA / "prometheus" / "alerts.yml"
NAME = re.compile(r"\b((?:moedge|process)_[a-z0-9_]+)\b")


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_dashboard_is_what_its_script_makes(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(INFRA / 'grafana')!r}); import build; sys.stdout.write(build.rendered())"
    made = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert made == DASHBOARD.read_text(), "say: python infra/grafana/build.py"


def test_the_dashboard_has_a_row_for_the_fleet_one_edge_and_the_merges():
    rows = [panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] == "row"]
    assert rows == ["Fleet", "One edge: $edge", "Merges"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert re.fullmatch(r"[A-Z][^\n]+\.", panel["description"])
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["targets"]


def test_panels_do_not_overlap():
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


async def test_every_metric_that_is_asked_for_is_exported(tmp_path):
    async with running_stack(tmp_path, metrics_port=0) as (stack, stub):
        await answered(stub)
        texts = [await asyncio.to_thread(_read, port) for port in stack.metrics_ports.values()]
    exported = {name for text in texts for name in re.findall(r"^([a-z_][a-z0-9_]*)(?:\{| )", text, re.M)}
    asked = {name for query in queries() for name in NAME.findall(query)}
    alerts = "\n".join(line for line in ALERTS.read_text().splitlines() if "moedge_" in line)
    missing = sorted((asked | set(NAME.findall(alerts))) - exported)
    assert not missing
    assert len(asked) > 40


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
@pytest.mark.parametrize(("what", "path"), [("rules", ALERTS), ("config", INFRA / "prometheus" / "prometheus.yml")])
def test_promtool_accepts(what, path):
    done = subprocess.run(["promtool", "check", what, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _read(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()
