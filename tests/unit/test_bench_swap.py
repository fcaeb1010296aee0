"""The swap benchmark at pico size: its versions, its load and what it says, not how fast it was."""

from __future__ import annotations

import json
from itertools import pairwise, product

import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.bench.swap.curve import ALLOCATIONS, KEEP_GAINS, curve
from loadgen.bench.swap.figures import SizeFigures, Swap
from loadgen.bench.swap.shapes import END, SHAPES, random_experts, random_rest, word_tokenizer
from loadgen.bench.swap.sites import Source
from loadgen.bench.swap.versions import GRID, drifting
from loadgen.cli.main import app
from tests.unit.pico import write_pico_checkpoint
from tests.unit.serving_builders import write_tasks


def swap_of(stall_s: float, peak_rss_bytes: int = 10) -> Swap:
    return Swap(2.0, 0.5, 0.5, 0.0, stall_s + 0.1, (0.1, 0.1, 0.1), stall_s, 1.0, 30, 100, peak_rss_bytes)


def test_mixes_drift_by_steps_of_the_grid():
    mixes = drifting(("a", "b", "c"), 9, np.random.default_rng(0))
    assert all(sum(mix.values()) == pytest.approx(1.0) for mix in mixes)
    assert all((share * GRID) == pytest.approx(round(share * GRID)) for mix in mixes for share in mix.values())
    assert all(before != after for before, after in pairwise(mixes))


def test_a_random_model_is_the_same_for_the_same_seed_and_never_ends_an_answer():
    shape = SHAPES["pico"]
    rest = random_rest(shape, 3).parameters()
    assert all(bool((rest[name] == tensor).all()) for name, tensor in random_rest(shape, 3).parameters().items())
    assert not rest["shared"][END].any()
    assert bool((random_experts(shape, 2, 3)["wi"] == random_experts(shape, 2, 3)["wi"]).all())
    assert word_tokenizer(shape).encode("w0 w1") == [3, 4, END]


def test_the_budget_is_the_process_one_version_and_the_reserve():
    size = SizeFigures(0.25, (swap_of(0.02), swap_of(0.04, 14)), 5, (), 0.05, 0.1, 0.0, 80.0, 7, 4, 2, 9, 3)
    assert (size.peak_rss_bytes, size.budget_bytes) == (14, 13)
    assert size.stall_median_s == pytest.approx(0.03)
    assert size.bytes_share == pytest.approx(0.3)


def test_a_worker_is_swapped_under_load_and_no_task_fails():
    ran = CliRunner().invoke(app, ["bench", "swap", "--shape", "pico", "--fractions", "0.25", "--swaps", "2", "--quiet-s", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    figures = json.loads(ran.stdout)
    size = figures["sizes"]["0.25"]
    assert {"swaps", "failed", "stall_p99_s", "bytes_share", "peak_rss_bytes"} <= figures.keys()
    assert (figures["swaps"], figures["failed"], len(size["stalls_s"])) == (2, 0, 2)
    assert size["completed"] > 0
    assert 0 < figures["bytes_share"] < 1
    assert size["downtime_median_s"] == 0


def test_an_unknown_shape_is_refused():
    ran = CliRunner().invoke(app, ["bench", "swap", "--shape", "huge"])
    assert ran.exit_code == 2
    assert "switch-base-32" in ran.output


def test_the_curve_has_a_point_for_each_weight_of_what_an_edge_holds(tmp_path):
    write_pico_checkpoint(tmp_path / "model")
    source = Source(str(tmp_path / "model"), str(write_tasks(tmp_path / "tasks.jsonl")))
    points = curve(source, 0.5, num_updates=2, seed=0, tell=lambda what: None, measured_items=4)
    assert [(point.allocation, point.keep_gain) for point in points] == list(product(ALLOCATIONS, (None, *KEEP_GAINS)))
    assert all(0 <= point.bytes_share <= 1 and 0 <= point.score <= 1 for point in points)
