"""A newcomer follows services/core/README.md: one file, no other edit, and the policy is everywhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
