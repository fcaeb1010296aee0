"""A newcomer follows services/core/README.md: one file, no other edit, and the policy is everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.pico import write_pico_checkpoint
from tests.unit.serving_builders import write_tasks

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "services/core/README.md"

# Each runs in a fresh interpreter in which the folder of policies has one file more.
BEFORE = "import sys; import services.core.offload.policies as p; p.__path__.append(sys.argv[1])\n"
ENGINE = """
import numpy as np
from services.core.offload.engine import offload_engine
from tests.builders import make_edge, make_task
assert "good_enough" in p.names(), p.names()
assert p.options("good-enough") == ("patience",)
engine = offload_engine("good_enough", quality_scale=1.0, rng=np.random.default_rng(0), policy_options={"patience": 3.0})
decision = engine.decide(make_task(), (make_edge("a", quality={"alpha-task": 0.2}), make_edge("b")), 0.0)
assert (decision.chosen, decision.policy) == (("b",), "good_enough"), decision
"""
LIVE = """
from services.broker.settings import BrokerSettings
assert BrokerSettings(policy="good-enough").policy == "good_enough"
from typer.testing import CliRunner
from loadgen.cli.main import app
for command in ("up", "replay"):
    assert "good_enough" in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "300"}).output, command
"""
SIMULATE = """
from typer.testing import CliRunner
from loadgen.cli.main import app
arguments = ["--policies", "good_enough,onto", "--seeds", "1", "--duration", "20", "--jobs", "1", "--json"]
told = CliRunner().invoke(app, ["simulate", "stationary", *arguments])
assert told.exit_code == 0, told.output
assert "good_enough" in told.stdout, told.stdout
"""
CONTRACT = """
import pytest
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "good_enough", "tests/contract/test_offload_policies.py"]))
"""


@pytest.fixture
def folder(tmp_path):
    """The README's file, as a newcomer would copy it."""
    (source,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "POLICY = GoodEnough" in code]
    assert len(source.splitlines()) <= 30
    (tmp_path / "good_enough.py").write_text(source)
    return tmp_path


@pytest.mark.parametrize("script", [ENGINE, LIVE, SIMULATE, CONTRACT], ids=["engine", "live", "simulate", "contract tests"])
def test_a_policy_of_one_file_appears_without_another_edit(folder, script):
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + script, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if script is CONTRACT:
        (passed,) = re.findall(r"(\d+) passed", done.stdout)
        assert int(passed) > 15


@pytest.fixture
def checkout(folder, tmp_path):
    """A copy of the checkout in which the README's file was added to the folder of policies, and nothing else was done."""
    copy = tmp_path / "checkout"
    for name in ("services", "loadgen", "proto", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    shutil.copy(folder / "good_enough.py", copy / "services/core/offload/policies")
    return copy


def run_in(checkout, *arguments):
    environment = {**os.environ, "PYTHONPATH": f"{checkout}{os.pathsep}{checkout / 'proto'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def moedge(checkout, *arguments):
    return json.loads(run_in(checkout, "-c", "from loadgen.cli.main import app; app()", *arguments, "--json"))


@pytest.mark.slow
def test_a_policy_of_one_file_serves_live_and_its_name_stands_in_the_report(checkout, tmp_path):
    write_pico_checkpoint(tmp_path / "model")
    write_tasks(tmp_path / "tasks.jsonl")
    source = ["--model", str(tmp_path / "model"), "--tasks", str(tmp_path / "tasks.jsonl"), "--cache", str(tmp_path / "cache")]
    told = moedge(checkout, "replay", "--policy", "good_enough", "--rate", "10", "--duration", "2", *source, "--out", str(tmp_path / "out"))
    assert told["runs"]["replay"]["policy"] == "good_enough"
    assert told["runs"]["replay"]["tasks"]["completed"] == told["runs"]["replay"]["tasks"]["sent"] > 5
    assert "Policy good_enough" in (tmp_path / "out" / "report.html").read_text()


def test_a_policy_of_one_file_is_among_all_policies_and_in_the_contract_tests(checkout):
    quick = ["--triggers", "never", "--seeds", "1", "--duration", "5", "--jobs", "1"]
    told = moedge(checkout, "simulate", "stationary", "--policies", "all", *quick)
    assert told["policies"]["good_enough"]["tasks"]["mean"] > 0
    collected = run_in(checkout, "-m", "pytest", "--collect-only", "-q", "tests/contract/test_offload_policies.py")
    assert len(re.findall(r"good_enough", collected)) > 15
