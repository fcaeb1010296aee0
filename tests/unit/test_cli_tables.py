"""Tables of commands in a terminal of 80 columns: no cell is broken or cut off, and what stands in them is explained."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from loadgen.bench.fitted import FittedFigures, MemoryFigures, StepTime
from loadgen.cli.bench.fitted import _print
from loadgen.cli.main import app
from loadgen.cli.profile import _print as print_profile
from services.model.profile import MergedRow, ProfileReport, QuantisedRow, ServiceTimes


def step_times(factor: float) -> tuple[StepTime, ...]:
    return tuple(StepTime(batch, 0.01234 * factor * batch, 0.0043 * factor * batch) for batch in (1, 2, 4, 8))


def memory(share: float, bits: int | None) -> MemoryFigures:
    score = None if bits is None else 0.123
    return MemoryFigures(share, 10**6, 16 * share, 0.79, 0.051, 0.01, bits, score, bits, score, 12.3, step_times(1.2), step_times(1.0))


def test_figures_of_fitted_experts_fit_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _print(FittedFigures("base", "bfloat16", 1.0, step_times(1.5), (memory(0.05, None), memory(0.08, 1), memory(0.37, 4))))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["experts", "bits", "fitted", "after", "a", "drift", "merged", "rounded", "compensated", "build", "s"]
    assert "0.123, 1 bit" in lines[5]
    assert "too large" in lines[4]


@pytest.fixture(scope="module")
def simulated() -> list[str]:
    args = ["simulate", "drift", "--policies", "ours,heft,join_shortest_queue", "--duration", "5", "--seeds", "2", "--jobs", "1"]
    result = CliRunner().invoke(app, args, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_simulated_policies_stand_in_tables_of_80_columns_with_units(simulated):
    heads = [line.split() for line in simulated if line.startswith("policy ")]
    assert heads[0] == ["policy", "positive", "cost", "s", "eq.", "(1)", "s", "table", "cost", "s"]
    assert heads[2] == ["policy", "quality", "updates", "downtime", "s", "rejected"]
    assert max(map(len, simulated[:-1])) <= 80
    assert sum(line.startswith("join_shortest_queue ") for line in simulated) == 3


def test_what_simulated_figures_mean_is_said_below_them(simulated):
    told = "\n".join(simulated)
    assert all(f"\n{word}: " in told for word in ("positive cost", "eq. (1)", "table cost", "process time", "p50, p99", "downtime"))
    assert "2 seeds, mean ± half of the 95 % interval" in told


def test_a_profile_of_five_task_types_fits_in_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    types = ("alternative", "facts", "pronoun", "question", "sentence")
    quality = dict.fromkeys(types, 0.123)
    merged = MergedRow("version", 102, 1_300_000, 3.21, 0.0, quality, quality, {})
    quantised = tuple(QuantisedRow(bits, bits + 0.5, 1_300_000, quality) for bits in (8, 4, 1))
    report = ProfileReport(
        "base", "float32", types, dict.fromkeys(types, 300), 0.25, 1_300_000, 3_600_000, 8.0, quality, {}, quality,
        dict.fromkeys(types, merged), merged, quantised[1], quantised, ServiceTimes({1: 0.01}, {1: 0.002}),
    )  # fmt: skip
    print_profile(report, ("held out", "calibration"), [])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["merged", "for", *types, "mean", "experts", "built", "in"]
    assert [line.split()[2:] for line in lines if line.startswith("4 bits")] == [["*", *["0.123"] * 6, "1.30", "MB", "4.50"]]
