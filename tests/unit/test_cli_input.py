"""Bad input to commands that start things here: one clear line, exit code 2, nothing started and nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.cli.console import CommandError
from loadgen.cli.main import app
from loadgen.cli.mixes import mix_of, shares_of
from loadgen.cli.serve import as_environment

COMMANDS = (
    ("up",), ("infer",), ("status",), ("explain",), ("replay",), ("simulate",), ("reproduce",), ("demo",), ("merge",), ("profile",),
    ("import-checkpoint",), ("topics",), ("certs",), ("edges",), ("edges", "pin"), ("serve",), ("serve", "worker"), ("bench",),
    ("bench", "all"), ("bench", "broker"), ("bench", "fitted"), ("bench", "merge"), ("bench", "simulator"), ("bench", "swap"),
    ("bench", "worker"),
)  # fmt: skip

MERGE = ("merge", "--tasks", "TASKS", "--budget-bytes", "1")


def run(*args: str):
    return CliRunner().invoke(app, list(args))


def write_tasks(path: Path) -> str:
    row = {"task": "sum", "id": "1", "prompt": "1 + 1", "references": ["2"]}
    path.write_text(json.dumps(row) + "\n")
    return str(path)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_of_which_80_columns_cut_nothing_off(command):
    result = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "Usage" in result.stdout
    assert "…" not in result.stdout


def test_help_breaks_lines_where_the_terminal_does_and_not_where_the_source_does():
    told = CliRunner().invoke(app, ["merge", "--help"], env={"COLUMNS": "80"}).stdout
    assert "leaves of the model, beside the unmerged model at few bits. Prints its" in told


def test_a_method_that_is_none_is_refused_before_anything_is_measured_with_all_that_there_are(tmp_path):
    told = run(*MERGE, "--method", "fited", "--model", str(tmp_path / "nowhere"))
    assert told.exit_code == 2
    assert "'fited' is unknown; did you mean fitted?" in " ".join(told.output.replace("│", " ").split())
    told = run(*MERGE, "--method", "zzz")
    assert "there are average, best, dominant, fitted, m-smoe" in " ".join(told.output.replace("│", " ").split())


@pytest.mark.parametrize("service", ["broker", "worker", "controller", "merger"])
def test_the_settings_of_a_service_fit_in_80_columns(service):
    result = CliRunner().invoke(app, ["serve", service, "--settings"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert "…" not in result.stdout
    assert f"--log-level is MOEDGE_{service.upper()}_LOG_LEVEL" in result.stdout


def test_help_imports_neither_torch_nor_grpc():
    code = "import sys, loadgen.cli.main; print([m for m in ('torch', 'grpc', 'numpy', 'transformers', 'matplotlib') if m in sys.modules])"
    started_at_s = time.perf_counter()
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert printed.stdout.strip() == "[]"
    assert time.perf_counter() - started_at_s < 20


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["up", "--model", "EMPTY", "--tasks", "toy", "--edges", "0"], "edges: 0 is not in 1 to 64"),
        (["up", "--model", "EMPTY", "--tasks", "toy", "--edges", "none.toml"], "edges: 'none.toml' is neither a number"),
        (["up", "--model", "EMPTY"], "tasks: --model is given and there is no tasks.jsonl in it"),
        (["up", "--model", "nowhere", "--tasks", "toy"], "model: nowhere is neither a directory nor a hub id"),
        (["replay", "--model", "nowhere", "--tasks", "none.jsonl"], "tasks: none.jsonl does not exist"),
        (["replay", "--model", "nowhere", "--tasks", "TASKS", "--trace", "none.csv"], "none.csv: cannot be read"),
        (["replay", "--model", "nowhere", "--tasks", "TASKS", "--trace", "BROKEN"], ":2: 2 columns where the header has 3"),
        (["replay", "--model", "nowhere", "--tasks", "TASKS", "--mix", "copa=1"], "mix: 'copa' is no task type"),
        (["replay", "--model", "nowhere", "--tasks", "TASKS"], "model: nowhere is neither a directory nor a hub id"),
        (["replay", "--target", "127.0.0.1:1", "--model", "nowhere"], "target: a stack that runs already takes no --model;"),
        (["replay", "--target", "127.0.0.1:1", "--policy", "random", "--edges", "2"], "takes no --edges, --policy; leave that out"),
        ([*MERGE, "--model", "EMPTY", "--task", "squad", "--out", "OUT"], "mix: 'squad' is no task"),
        ([*MERGE, "--model", "nowhere", "--task", "sum", "--out", "OUT"], "model: nowhere is neither"),
        ([*MERGE, "--model", "EMPTY", "--task", "sum", "--out", "OUT"], "config.json is missing"),
        ([*MERGE, "--model", "EMPTY", "--task", "sum", "--out", "TASKS"], "is a file; give a folder"),
        (["profile", "--model", "nowhere", "--tasks", "TASKS", "--out", "OUT"], "model: nowhere is neither a directory nor a hub id"),
        (["serve", "worker", "50051"], "'50051': settings are options"),
        (["serve", "broker", "--prot", "1"], "MOEDGE_BROKER_PROT: no such setting; did you mean MOEDGE_BROKER_PORT?"),
        (["serve", "broker", "--port"], "--port: needs a value"),
        (["serve", "broker", "--redis-url", "nowhere"], "redis_url: no URL of Redis; write redis://HOST:PORT"),
        (["bench", "broker", "--redis", "nowhere"], "redis_url: no URL of Redis; write redis://HOST:PORT"),
        (["serve", "merger"], "MOEDGE_MERGER_MODEL: missing; give checkpoint directory or hub id of the base model"),
        (["simulate", "drfit"], "scenario drfit is unknown; did you mean drift?"),
        (["simulate", "drift", "--policies", "ontoo"], "policy 'ontoo' is unknown; did you mean onto?"),
        (["simulate", "trace"], "load.arrivals is trace: give the file with --trace"),
        (["simulate", "BROKEN"], "Expected '=' after a key in a key/value pair"),
        (["reproduce", "nothing"], "experiment 'nothing' is unknown"),
        (["reproduce", "setup", "--out", "TASKS/out"], "tasks.jsonl/out: Not a directory"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, args, complaint):
    monkeypatch.chdir(tmp_path)
    for name in ("MOEDGE_BROKER_PROT", "MOEDGE_BROKER_PORT", "MOEDGE_BROKER_REDIS_URL", "MOEDGE_MERGER_MODEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    broken = tmp_path / "broken.csv"
    broken.write_text("arrival_s,prompt_tokens,output_tokens\n0.0,3\n")
    (tmp_path / "empty").mkdir()
    places = {
        "TASKS": write_tasks(tmp_path / "tasks.jsonl"),
        "OUT": str(tmp_path / "out"),
        "BROKEN": str(broken),
        "EMPTY": str(tmp_path / "empty"),
    }
    result = run(*(arg.replace("TASKS/", places["TASKS"] + "/") if "/" in arg else places.get(arg, arg) for arg in args))
    assert result.exit_code == 2, result.output
    assert complaint in result.stderr
    assert result.stderr.startswith("moedge: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["infer"],
        ["infer", "hi", "--max-tokens", "-1"],
        ["replay", "--rate", "0"],
        ["simulate", "drift", "--duration", "0"],
        ["up", "--policy", "ontoo"],
        ["up", "--trigger", "jtomm"],
        ["merge", "--task", "a"],
        ["status", "--every", "soon"],
        ["nothing"],
    ],
)
def test_usage_errors_exit_2(args):
    assert run(*args).exit_code == 2


def test_a_name_that_is_almost_a_policy_is_asked_for():
    assert "did you mean onto?" in run("up", "--policy", "ontoo").stderr


def test_shares_are_read_and_sum_to_one():
    assert shares_of("squad", ("copa", "squad")) == {"squad": 1.0}
    assert shares_of("squad=3, copa=1", ("copa", "squad")) == {"copa": 0.25, "squad": 0.75}


@pytest.mark.parametrize("text", ["boolq", "copa=", "copa=-1", "copa=0", "copa=x", "copa=nan"])
def test_other_shares_are_refused(text):
    with pytest.raises(CommandError, match="mix: "):
        shares_of(text, ("copa", "squad"))


def test_a_mix_has_phases():
    mix = mix_of("0:copa=1;60:squad=3,copa=1", ("copa", "squad"), 120.0)
    assert mix.changes() == (60.0,)
    assert mix.at(61.0) == {"copa": 0.25, "squad": 0.75}


def test_the_drifting_mix_changes_twice_and_every_type_always_comes():
    task_types = ("a", "b", "c", "d", "e")
    mix = mix_of("drift", task_types, 90.0)
    assert mix.changes() == (30.0, 60.0)
    for at_s in (0.0, 30.0, 60.0):
        shares = mix.at(at_s)
        assert set(shares) == set(task_types)
        assert min(shares.values()) > 0
    assert mix_of("drift", ("only",), 90.0).at(0.0) == {"only": 1.0}


@pytest.mark.parametrize("text", ["60:copa;0:squad", "soon:copa", ""])
def test_other_mixes_are_refused(text):
    with pytest.raises(CommandError, match="mix: "):
        mix_of(text, ("copa", "squad"), 60.0)


def test_options_of_serve_are_settings_of_that_service():
    assert as_environment("worker", ["--port", "1", "--log-level=DEBUG"]) == {"MOEDGE_WORKER_PORT": "1", "MOEDGE_WORKER_LOG_LEVEL": "DEBUG"}
