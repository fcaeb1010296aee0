"""The merging benchmark, run whole on a model small enough for seconds: what it compares must be equal, whatever it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import SwitchTransformersForConditionalGeneration
from typer.testing import CliRunner

from loadgen.bench.full_size import num_params, write_checkpoint
from loadgen.bench.merge import measure, remove
from loadgen.bench.merge_figures import MergeOptions
from loadgen.bench.plain_m_smoe import PlainLayer, matched, merged
from loadgen.bench.routing import logits_of
from loadgen.bench.sizes import Sizes
from loadgen.cli.main import app
from services.core.merging.values import LayerStatistics
from services.model.checkpoint import read_base

DEMO = Path(__file__).parents[2] / "infra" / "demo-model"
SIZES = Sizes(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_blocks=4, num_experts=8, vocab_size=900)
BUDGET_BYTES = 4 * (num_params(SIZES) - 16 * SIZES.expert_params)  # the rest of the model and half of its experts


def quiet(what: str) -> None:
    pass


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def figures(scratch):
    return measure(MergeOptions(scratch, SIZES, BUDGET_BYTES, rounds=1, trained_model=DEMO), quiet)


def test_both_sides_make_the_same_experts_of_the_same_groups(figures):
    assert set(figures.routings) == {"even", "measured"}
    for routing in figures.routings.values():
        assert routing.groups_agree
        assert routing.max_abs_diff < 1e-5
        assert routing.experts_kept == 16
        assert routing.pairs == routing.experts_read - routing.experts_kept
    assert figures.routings["even"].experts_read == 32, "even routing leaves no expert out"


def test_a_next_mix_changes_some_groups(figures):
    assert figures.routings["even"].next_mix is None
    after = figures.routings["measured"].next_mix
    assert 0 < after.changed_groups < after.num_groups == 16


def test_what_was_prepared_is_used_again_with_the_seconds_it_took(figures, scratch):
    again = measure(MergeOptions(scratch, SIZES, BUDGET_BYTES, rounds=1, trained_model=DEMO), quiet)
    assert again.prepared == figures.prepared
    assert figures.prepared.num_pairs > 0


def test_what_a_run_left_is_removed_and_nothing_else(tmp_path):
    for name in ("checkpoint", "cache", "store"):
        (tmp_path / name / "deeper").mkdir(parents=True)
    (tmp_path / "prepared.json").touch()
    (tmp_path / "mine").touch()
    remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_checkpoint_is_one_that_transformers_reads_and_repeats(tmp_path):
    for name in ("one", "other"):
        write_checkpoint(tmp_path / name, SIZES, 0, DEMO, quiet)
    loaded: Any = SwitchTransformersForConditionalGeneration.from_pretrained(tmp_path / "one", output_loading_info=True)
    model, told = loaded
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert model.num_parameters() == num_params(SIZES)
    base = read_base(tmp_path / "one")
    assert base.base_id == read_base(tmp_path / "other").base_id
    assert len(base.model.experts) == SIZES.num_moe_layers
    assert torch.equal(base.model.experts[0].weights["wi"][3], model.encoder.block[1].layer[1].mlp.experts.expert_3.wi.weight)


def test_sizes_are_those_of_switch_base_32_unless_told():
    assert (num_params(Sizes()), Sizes().expert_params, Sizes().num_moe_layers) == (1_978_514_688, 4_718_592, 12)


def test_made_logits_have_the_gram_matrix_they_were_made_for():
    drawn = np.random.default_rng(0).standard_normal((50, 6))
    statistics = LayerStatistics(np.ones(6), drawn.T @ drawn)
    np.testing.assert_allclose(logits_of(statistics, 1).T @ logits_of(statistics, 1), statistics.gram, atol=1e-9)


def test_the_plain_order_undoes_a_shuffle():
    generator = torch.Generator().manual_seed(0)
    weights = {"wi": torch.randn(12, 4, generator=generator), "wo": torch.randn(4, 12, generator=generator)}
    order = torch.randperm(12, generator=generator)
    shuffled = {"wi": weights["wi"][order], "wo": weights["wo"][:, order]}
    assert torch.equal(shuffled["wi"][matched(weights, shuffled)], weights["wi"])


@pytest.mark.parametrize("in_place", [False, True])
def test_the_plain_mean_is_the_weighted_mean_of_reordered_members(tmp_path, in_place):
    generator = torch.Generator().manual_seed(0)
    wi, wo = torch.randn(3, 12, 4, generator=generator), torch.randn(3, 4, 12, generator=generator)
    names = {f"e.expert_{expert}.{name}.weight": of[expert].clone() for expert in range(3) for name, of in (("wi", wi), ("wo", wo))}
    save_file(names, tmp_path / "experts.safetensors")
    layer = PlainLayer(tmp_path / "experts.safetensors", "e", np.array([[1.0, 0.9, -1.0]]), [0, 2], [0.75, 0.25, 1.0])
    first, second = merged(layer, {(0, 1): torch.arange(12).flip(0)}, in_place)
    torch.testing.assert_close(first["wi"], 0.75 * wi[0] + 0.25 * wi[1].flip(0))
    torch.testing.assert_close(first["wo"], 0.75 * wo[0] + 0.25 * wo[1].flip(1))
    assert torch.equal(second["wi"], wi[2])


def test_the_command_prints_its_figures_as_json_and_leaves_nothing(tmp_path):
    small = ["--d-model", "16", "--d-ff", "24", "--heads", "1", "--blocks", "2", "--experts", "8", "--vocabulary", "900", "--threads", "1"]
    result = CliRunner().invoke(
        app, ["bench", "merge", "--scratch", str(tmp_path / "s"), "--budget-bytes", "800000", "--rounds", "1", "--json", *small]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {"remerge_s", "ratio_align_again", "ratio_same_alignment", "peak_rss_bytes", "max_abs_diff", "cold_s", "limit_s"} <= set(told)
    assert {"prepare_experts_s", "prepare_align_s", "prepare_pairs", "moved_bytes", "share_of_limit", "machine", "routings"} <= set(told)
    assert not (tmp_path / "s").exists()
