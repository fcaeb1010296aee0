"""Servers of QoS-Quant, MoE-Load and Multi-MoE in the simulator: seconds and quality by hand, and the forms in which baselines run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from loadgen.cli.main import app
from loadgen.simulator.comparison import SEVEN, arms, compare
from loadgen.simulator.figures import figures
from loadgen.simulator.holdings import Holding
from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.runtimes import edge_runtimes, swap_s
from loadgen.simulator.scenario import PROFILES, EdgeGroup, LoadOptions, RuntimeOptions, Scenario, scenario
from loadgen.simulator.simulation import Outcome, simulate
from loadgen.simulator.sites import edge_sites
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.core.runtimes import expert_buffered, mixed_precision, touched

FULL_BYTES, NUM_EXPERTS = 3.84e8, 384
EXPERT_BYTES = FULL_BYTES / NUM_EXPERTS  # a megabyte
MODEL = StatedModel(
    StatedOptions(("a", "b"), full_bytes=int(FULL_BYTES), own_quality=0.9, quantised_quality=0.6, concentration=0.5, prefill_base_s=0.01)
)


def make_scenario(share: float, speed: float = 0.5, **runtimes) -> Scenario:
    edges = (EdgeGroup("only", memory_share=share, speed=speed, max_batch=1, max_queue=10_000),)
    return Scenario("made", "", MODEL, edges, LoadOptions(2.0), duration_s=100.0, runtimes=RuntimeOptions(**runtimes))


def run(made: Scenario, holding: Holding, trigger: str = "never") -> Outcome:
    return simulate(made, draw_load(made, 1), "home", trigger, 1, holding)


def extra_s(outcome: Outcome, made: Scenario) -> np.ndarray:
    """Of each task: its time in service beyond reading and stepping, one at a time."""
    (site,) = edge_sites(made, 1)
    computing_s = site.step_times.prefill_base_s + outcome.load.output_tokens * site.step_times.step_base_s
    return outcome.left_at_s - outcome.started_at_s - computing_s


def whole(task_type: str) -> np.ndarray:
    return MODEL.version({}, 1.0).profiles[task_type].ravel()


def test_a_buffered_task_takes_its_misses_over_the_link_of_its_edge_and_answers_as_the_whole_model_does():
    made = make_scenario(0.25, speed=0.5, link_bytes_per_s=4e9)
    outcome = run(made, "expert_buffered")
    expected_s = [expert_buffered.effect(whole(t), 96, EXPERT_BYTES, 2e9, 0.9, "lifo").extra_s for t in ("a", "b")]
    assert min(expected_s) > 0.01
    assert extra_s(outcome, made) == pytest.approx(np.array(expected_s)[outcome.load.task_type])
    assert set(outcome.quality) == {0.9}
    assert outcome.host_bytes == FULL_BYTES


def test_with_a_link_of_no_time_a_buffered_edge_is_one_that_holds_all():
    told = run(make_scenario(0.25, link_bytes_per_s=1e30), "expert_buffered")
    full = run(make_scenario(1.0), "merged")
    assert told.completed_at_s == pytest.approx(full.completed_at_s)
    assert np.array_equal(told.quality, full.quality)


def test_the_whole_model_at_4_bits_scores_what_was_measured_at_4_bits():
    outcome = run(make_scenario(5 / 16, host_memory=False), "mixed_precision")
    assert outcome.quality == pytest.approx(0.6)
    assert np.abs(extra_s(outcome, make_scenario(5 / 16))).max() < 1e-9
    assert outcome.host_bytes == 0.0


def test_more_memory_keeps_more_experts_in_16_bits_and_more_quality():
    means = [float(run(make_scenario(share, host_memory=False), "mixed_precision").quality.mean()) for share in (0.3125, 0.5, 0.9, 1.0)]
    assert means == sorted(means)
    assert means[0] == pytest.approx(0.6)
    assert 0.65 < means[1] < 0.75 < 0.85 < means[2] < means[3] == pytest.approx(0.9)


def two_tasks_after_another(load: Load, task_type: list[int], alpha: list[float]) -> Load:
    return dataclasses.replace(load, task_type=np.array(task_type), alpha=np.array(alpha))


def test_a_change_of_plan_is_paid_for_once_by_the_task_that_brings_it():
    made = make_scenario(0.5, speed=1.0, link_bytes_per_s=1e9, preference_tasks=2)
    load = two_tasks_after_another(draw_load(made, 1), [0, 0, 0, 0], [0.1, 0.9, 0.9, 0.9])
    (runtime,) = edge_runtimes(made, load, edge_sites(made, 1), 1, "mixed_precision")
    assert runtime is not None
    before, still, changed, after = (runtime.begin(task) for task in range(4))
    assert before == still  # one of two is no majority
    sizes = MODEL.sizes
    order = np.random.default_rng([1, 30]).permutation(NUM_EXPERTS).tolist()
    one, two = (mixed_precision.plan(FULL_BYTES / 2, sizes, kind, order) for kind in ("throughput", "quality"))
    assert changed.extra_s - after.extra_s == pytest.approx(mixed_precision.moved_bytes(one, two, sizes) / 1e9)
    assert changed.quality == after.quality == 0.9
    assert before.quality < 0.9
    assert runtime.host_bytes == FULL_BYTES  # the quality plan leaves experts there


def test_another_variant_costs_a_swap_and_foreign_experts_cost_quality():
    made = make_scenario(0.25, speed=1.0, link_bytes_per_s=1e9, foreign_loss=0.5)
    demo = dataclasses.replace(made, model=scenario("drift").model)
    load = two_tasks_after_another(draw_load(demo, 1), [0, 0, 1, 1], [0.5] * 4)
    (runtime,) = edge_runtimes(demo, load, edge_sites(demo, 1), 1, "multi_model")
    assert runtime is not None
    first, second, other, last = (runtime.begin(task) for task in range(4))
    swap = demo.model.sizes.non_expert_bytes / 1e9
    assert swap == pytest.approx(swap_s(demo))
    assert first.extra_s - second.extra_s == pytest.approx(swap)
    assert other.extra_s - last.extra_s == pytest.approx(swap)
    assert 0.5 < last.quality == other.quality < 1.0
    missed = float(touched(demo.model.version({}, 1.0).profiles["facts"].ravel()).sum())
    assert last.extra_s < missed * demo.model.sizes.expert_16_bytes / 1e9  # a quarter is resident


def test_without_host_memory_an_edge_too_small_for_4_bits_holds_a_merged_model_and_only_that_is_updated():
    edges = (EdgeGroup("small", memory_share=0.22, mix={"a": 1.0}), EdgeGroup("large", memory_share=0.4))
    made = dataclasses.replace(
        make_scenario(0.5), edges=edges, load=LoadOptions(8.0), duration_s=300.0, runtimes=RuntimeOptions(host_memory=False)
    )
    outcome = simulate(made, draw_load(made, 1), "round_robin", "periodic", 1, "mixed_precision")
    assert {update.edge_id for update in outcome.updates} == {"small"}
    at_large = outcome.edge == outcome.edge_ids.index("large")
    assert (outcome.quality[at_large] >= 0.6).all()
    for kind in ("expert_buffered", "multi_model"):
        assert edge_runtimes(made, draw_load(made, 1), edge_sites(made, 1), 1, kind) == (None, None)


def test_the_loss_at_4_bits_comes_from_the_profile():
    model = scenario("drift").model
    told = json.loads((PROFILES / "demo.json").read_text())["unmerged"]
    row = next(row for row in told["rows"] if row["bits"] == 4)
    assert model.four_bit_quality == row["quality"]
    sizes = model.sizes
    assert sizes.num_experts * sizes.expert_16_bytes + sizes.non_expert_bytes == told["full_bytes"]
    assert sizes.expert_4_bytes / sizes.expert_16_bytes == pytest.approx(5 / 16)


def test_baselines_run_in_the_form_asked_for_with_its_options_and_what_its_servers_hold():
    strong, paper = ({arm.name: arm for arm in arms(["all"], ["jtom"], form)} for form in ("strong", "paper"))
    assert [strong[name].holding for name in SEVEN] == ["merged"] * 4 + ["mixed_precision", "expert_buffered", "multi_model"]
    assert [paper[name].holding for name in SEVEN] == ["merged"] * 6 + ["multi_model"]
    for name in SEVEN:
        assert strong[name].policy_options["form"] == "strong"
        assert paper[name].policy_options["form"] == "paper"
    assert (strong["lcs"].trigger_options["mode"], paper["lcs"].trigger_options["mode"]) == ("product", "paper")
    (named,) = arms(["qos-quant"], ["never"])
    assert (named.holding, named.trigger, dict(named.trigger_options)) == ("mixed_precision", "never", {})


def test_at_equal_bytes_the_papers_forms_of_qos_quant_and_moe_load_change_nothing_about_a_merged_model():
    """Why those arms hold `merged`: all experts of a merged model stay resident in 16 bits in the memory that holds it."""
    sizes = mixed_precision.Sizes(84, 4096.0, 1280.0, 1e5)
    held = mixed_precision.plan(1e5 + 84 * 4096.0, sizes, "throughput", range(84))
    assert held.resident.all()
    assert not held.four_bit.any()
    accesses = [*range(84)] * 3
    assert expert_buffered.num_misses(accesses, 84, "lifo") == 84  # each comes in once


def test_the_papers_form_binds_users_and_costs_more():
    made = scenario("drift", duration_s=60.0)
    costs = {
        form: compare(made, arms(["moe_load"], ["jtom"], form), (1,), lambda *_: None).summary("moe_load")["positive_cost"].mean
        for form in ("paper", "strong")
    }
    assert costs["strong"] < costs["paper"]


def test_the_json_tells_forms_holdings_and_host_memory():
    arguments = ["simulate", "drift", "--policies", "multi_moe,onto", "--seeds", "1", "--duration", "20", "--json", "--jobs", "1"]
    result = CliRunner().invoke(app, [*arguments, "--forms", "paper"])
    told = json.loads(result.stdout)
    assert told["forms"] == "paper"
    assert (told["policies"]["multi_moe"]["holding"], told["policies"]["onto"]["holding"]) == ("multi_model", "merged")
    assert told["policies"]["onto"]["host_bytes"]["mean"] == 0.0
    assert told["policies"]["multi_moe"]["host_bytes"]["mean"] == pytest.approx(12 * 5 * 1803456)


def test_a_run_with_runtimes_is_the_same_again():
    made = make_scenario(0.4)
    one, two = (figures(run(made, "mixed_precision"), 1.0) for _ in range(2))
    assert one == two
