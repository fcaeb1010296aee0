"""Builds: exact budgets, identity, versions, recovery, what the manifest says, and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from services.core.merging.errors import BudgetError, MixError, OptionError
from services.core.merging.recipes import CANDIDATES
from services.core.merging.values import normalised
from services.model.aligning_ahead import missing_pairs
from services.model.alignment import align
from services.model.build import Builder, BuildOptions, BuildSettings
from services.model.calibration import calibrate, measure
from services.model.checkpoint import BaseModel, read_base
from services.model.errors import BlobError
from services.model.greedy import greedy
from services.model.memory import budget_for, unique_bytes
from services.model.profile import profile, share_bytes
from services.model.recovery import RecoveryOptions, examples, recover
from tests.unit.pico import pico_tasks, write_pico_checkpoint

EVEN = {"left": 0.5, "right": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    return read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")))


@pytest.fixture(scope="module")
def builder(base, tmp_path_factory) -> Builder:
    return make_builder(base, tmp_path_factory.mktemp("cache"))


def make_builder(base: BaseModel, cache_dir: Path, **settings) -> Builder:
    return Builder(base, pico_tasks(), cache_dir, BuildSettings(**settings))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("share", [0.25, 0.4, 0.6])
def test_bytes_stay_within_the_budget_and_within_one_expert_of_it(base, tmp_path, share, dtype):
    builder = make_builder(read_base(base.directory, dtype), tmp_path)
    one_expert = budget_for(builder.base.model, 0).expert_bytes[0]
    for budget_bytes in (share_bytes(builder, share), share_bytes(builder, share) + one_expert - 1):
        manifest = builder.build({"left": 1.0}, budget_bytes)
        assert budget_bytes - one_expert < manifest.model_bytes <= budget_bytes
        assert unique_bytes(builder.model(manifest).model) == manifest.model_bytes
        assert manifest.budget_bytes == budget_bytes
        assert manifest.experts_kept == (budget_bytes - share_bytes(builder, 0.0)) // one_expert


def test_a_budget_that_is_too_small_names_the_smallest_that_works(builder):
    with pytest.raises(BudgetError) as caught:
        builder.build(EVEN, 1000)
    smallest = caught.value.smallest_bytes
    assert builder.build(EVEN, smallest).model_bytes == smallest
    with pytest.raises(BudgetError):
        builder.build(EVEN, smallest - 1)


def test_a_budget_that_holds_everything_gives_the_full_model_bit_for_bit(builder):
    manifest = builder.build(EVEN, builder.base.full_bytes, BuildOptions(recovery_steps=5))
    served = builder.model(manifest).model
    assert manifest.model_bytes == manifest.full_model_bytes == builder.base.full_bytes
    prompts, targets = [[5, 9, 1], [7, 8, 1]], [[4, 1], [4, 5, 1]]
    with torch.no_grad():
        assert torch.equal(served.teacher_forced(prompts, targets), builder.base.model.teacher_forced(prompts, targets))
    assert builder.build(EVEN, builder.base.full_bytes - 1).experts_kept == 31


def test_the_same_request_is_the_same_version_in_any_cache_and_comes_back_at_once(builder, tmp_path):
    phases: list[str] = []
    first = builder.build({"left": 1.0}, builder.base.full_bytes // 2, BuildOptions(recovery_steps=2))
    again = builder.build(
        {"left": 1.0, "right": 0.0}, builder.base.full_bytes // 2, BuildOptions(recovery_steps=2), lambda p, _: phases.append(p)
    )
    elsewhere = make_builder(builder.base, tmp_path).build({"left": 1.0}, builder.base.full_bytes // 2, BuildOptions(recovery_steps=2))
    assert first.version == again.version == elsewhere.version
    assert first.digests == again.digests == elsewhere.digests
    assert phases == ["prepare", "plan"] * 2  # one round for each candidate method
    for other in (
        builder.build({"right": 1.0}, builder.base.full_bytes // 2, BuildOptions(recovery_steps=2)),
        builder.build({"left": 1.0}, builder.base.full_bytes // 2),
        builder.build({"left": 1.0}, builder.base.full_bytes // 2, BuildOptions(method="average")),
        builder.build({"left": 1.0}, builder.base.full_bytes * 2 // 3, BuildOptions(recovery_steps=2)),
    ):
        assert other.version != first.version


def test_a_version_whose_blobs_were_dropped_is_built_again(builder):
    first = builder.build({"right": 1.0}, builder.base.full_bytes // 2)
    (builder.store.directory / first.blobs[0].digest).unlink()
    assert builder.build({"right": 1.0}, builder.base.full_bytes // 2).digests == first.digests
    assert not builder.store.missing(first.digests)


def test_the_manifest_says_what_the_merged_model_itself_shows(builder):
    manifest = builder.build({"left": 0.25, "right": 0.75}, builder.base.full_bytes // 2)
    items = {t: builder.items(t) for t in ("left", "right")}
    measured = measure(builder.model(manifest).model, builder.base.tokenizer, items, builder.scorers, builder.calibration.max_answer_tokens)
    assert manifest.quality == measured.quality
    for task_type in items:
        np.testing.assert_array_equal(manifest.profiles[task_type].frequencies, measured.frequencies[task_type])
    mixed = sum(share * measured.counts[t] / len(items[t]) for t, share in manifest.mix.items())
    np.testing.assert_allclose(manifest.frequencies, normalised(mixed))
    np.testing.assert_allclose(manifest.frequencies.sum(axis=1), 1.0)
    assert set(manifest.durations_s) >= {"plan", "merge", "measure", "check", "write"}


def test_check_prompts_hold_the_versions_own_answers(builder):
    manifest = builder.build({"left": 1.0}, builder.base.full_bytes // 2)
    served = builder.model(manifest)
    assert len(manifest.check_prompts) == 3
    for check in manifest.check_prompts:
        ids = greedy(served.model, [served.tokenizer.encode(check.prompt)], builder.calibration.max_answer_tokens)[0]
        assert served.tokenizer.decode(ids) == check.text


def test_raw_frequencies_stand_in_for_the_mix(builder):
    raw = builder.calibration.profiles.frequencies("right")
    manifest = builder.build({}, builder.base.full_bytes // 2, BuildOptions(raw_frequencies=raw))
    assert manifest.mix == {"right": 1.0}
    assert manifest.index_maps == builder.build({"right": 1.0}, builder.base.full_bytes // 2).index_maps


def test_planning_against_the_present_version_ships_less(builder):
    present = builder.build({"left": 1.0}, builder.base.full_bytes // 2)
    wanted = {"left": 0.9, "right": 0.1}
    plain = builder.build(wanted, builder.base.full_bytes // 2)
    kept = builder.build(wanted, builder.base.full_bytes // 2, BuildOptions(present_version=present.version))
    assert len(kept.digests - present.digests) <= len(plain.digests - present.digests)
    unknown = builder.build(wanted, builder.base.full_bytes // 2, BuildOptions(present_version="0" * 16))
    assert unknown.version == plain.version


def test_bad_requests_are_refused_with_nothing_written(base, tmp_path):
    builder = make_builder(base, tmp_path)
    for mix, options, error in [
        ({"middle": 1.0}, BuildOptions(), MixError),
        ({"left": 0.4}, BuildOptions(), MixError),
        ({"left": 1.0}, BuildOptions(method="m-smo"), OptionError),
        ({"left": 1.0}, BuildOptions(allocation="none"), OptionError),
        ({"left": 1.0}, BuildOptions(present_version="../x"), BlobError),
    ]:
        with pytest.raises(error):
            builder.build(mix, base.full_bytes // 2, options)
    with pytest.raises(BlobError, match="16 hexadecimal"):
        builder.manifest("../../secret")
    assert builder.manifest("0" * 16) is None
    assert not list(builder.store.directory.iterdir())
    assert not (tmp_path / "manifests").exists()


def test_calibration_is_made_once_and_read_back(base, tmp_path):
    tasks = pico_tasks()
    items = {t: tasks.of_type(t) for t in tasks.task_types}
    scorers = make_builder(base, tmp_path).scorers
    first = calibrate(base, items, scorers, tmp_path)
    changed = {t: lambda text, references: 0.5 for t in items}
    again = calibrate(base, items, changed, tmp_path)
    assert again.quality == first.quality
    assert again.prompt_words == first.prompt_words
    for task_type in items:
        for new, old in zip(again.profiles.statistics[task_type], first.profiles.statistics[task_type], strict=True):
            np.testing.assert_array_equal(new.gram, old.gram)
            np.testing.assert_array_equal(new.counts, old.counts)
    num_prompt_tokens = np.mean([len(base.tokenizer.encode(item.prompt)) for item in items["left"]])
    assert first.tokens_per_task["left"][0] == pytest.approx(num_prompt_tokens)
    assert first.tokens_per_task["left"][-1] == pytest.approx(first.output_tokens["left"])
    next(path for path in tmp_path.iterdir() if path.name.startswith("calibration")).write_bytes(b"broken")
    assert calibrate(base, items, changed, tmp_path).quality == {"left": 0.5, "right": 0.5}


def test_recovery_learns_on_its_items_trains_nothing_but_experts_and_repeats(base):
    wanted = {"left": examples(base.tokenizer, base.model.shape, pico_tasks().of_type("left"))}
    options = RecoveryOptions(steps=30, learning_rate=1e-2, divergence_weight=0.0)
    before = {name: tensor.clone() for name, tensor in base.model.parameters().items()}
    recovered, report = recover(base.model, base.model, wanted, {"left": 1.0}, options)
    again, _ = recover(base.model, base.model, wanted, {"left": 1.0}, options)
    assert report.steps == 30
    assert report.last_loss < 0.7 * report.first_loss
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.model.parameters().items())
    for name, tensor in recovered.parameters().items():
        assert torch.equal(tensor, before[name]) == (".experts." not in name)
        assert torch.equal(tensor, again.parameters()[name])
        assert not tensor.requires_grad


def test_recovery_towards_the_full_model_reduces_the_distance_to_it(base, tmp_path):
    builder = make_builder(base, tmp_path)
    merged = builder.unrecovered({"left": 1.0}, base.full_bytes // 2, BuildOptions("m-smoe"))
    wanted = {"left": examples(base.tokenizer, base.model.shape, builder.items("left"))}
    options = RecoveryOptions(steps=20, divergence_weight=50.0)
    recovered, _ = recover(merged, base.model, wanted, {"left": 1.0}, options)
    prompts, targets = ([list(getattr(example, part)) for example in wanted["left"]] for part in ("prompt", "target"))

    def divergence(model) -> float:
        with torch.no_grad():
            towards, found = (m.teacher_forced(prompts, targets).log_softmax(-1) for m in (base.model, model))
        return float((towards.exp() * (towards - found)).sum(-1).mean())

    assert divergence(recovered) < 0.8 * divergence(merged)


def test_recovery_keeps_the_stored_dtype(base):
    half = read_base(base.directory, "bfloat16")
    wanted = {"left": examples(half.tokenizer, half.model.shape, pico_tasks().of_type("left"))}
    recovered, _ = recover(half.model, half.model, wanted, {"left": 1.0}, RecoveryOptions(steps=2))
    assert {tensor.dtype for tensor in recovered.parameters().values()} == {torch.bfloat16}
    assert not torch.equal(recovered.experts[0].weights["wi"], half.model.experts[0].weights["wi"])


def test_alignment_is_shared_by_builders_of_one_cache(base, tmp_path):
    make_builder(base, tmp_path).build(EVEN, base.full_bytes // 2)
    assert align(base, tmp_path)._orders


def test_prepared_memories_leave_no_order_to_be_found_for_a_task_type_alone_or_all_equally(base, tmp_path):
    builder, budget = make_builder(base, tmp_path), base.full_bytes // 2
    builder.prepare()
    plans = [builder.plan(mix, budget, BuildOptions("m-smoe")) for mix in ({"left": 1.0}, {"right": 1.0}, EVEN)]
    assert missing_pairs(builder.aligned, plans)
    builder.prepare([budget])
    assert not missing_pairs(builder.aligned, plans)
    assert not missing_pairs(align(base, tmp_path), plans), "they are kept for the next builder"


def test_the_cache_limit_is_kept_and_the_latest_version_spared(base, tmp_path):
    builder = make_builder(base, tmp_path, cache_limit_bytes=0)
    first = builder.build({"left": 1.0}, base.full_bytes // 2)
    assert not builder.store.missing(first.digests)
    second = builder.build({"right": 1.0}, base.full_bytes // 2)
    assert not builder.store.missing(second.digests)
    assert builder.store.missing(first.digests)


def test_the_best_method_is_the_candidate_that_answers_the_mix_best(builder):
    mix, half = {"left": 0.7, "right": 0.3}, builder.base.full_bytes // 2
    best = builder.build(mix, half, BuildOptions("best"))
    candidates = [builder.build(mix, half, BuildOptions(method)) for method in CANDIDATES]
    scores = [sum(share * manifest.quality[t] for t, share in mix.items()) for manifest in candidates]
    assert best.version == candidates[scores.index(max(scores))].version


def test_a_profile_holds_the_table_and_its_rivals(base, tmp_path):
    builder = make_builder(base, tmp_path)
    told: list[float] = []
    report = profile(
        builder, pico_tasks(6, seed=1), 0.25, BuildOptions("m-smoe", recovery_steps=2), 6, (8, 3), lambda _, fraction: told.append(fraction)
    )
    assert set(report.merged) == {"left", "right"}
    assert set(report.merged["left"].quality) == set(report.full) == set(report.zero_experts) == {"left", "right"}
    assert report.merged["left"].recovery_s > 0
    assert report.bits_per_expert_weight == pytest.approx(8.0)
    assert report.same_bytes is not None
    assert report.same_bytes.model_bytes <= report.budget_bytes
    assert [row.bits for row in report.quantised] == [8, 3]
    assert report.full_frequencies["left"].shape == (4, 8)
    assert all(seconds > 0 for seconds in report.service_times.step_s.values())
    assert told == sorted(told)
    assert max(told) < 1


def test_a_reserve_is_left_free(base, tmp_path):
    builder = make_builder(base, tmp_path, reserve_bytes=50_000)
    manifest = builder.build(EVEN, base.full_bytes // 2)
    assert base.full_bytes // 2 - manifest.model_bytes >= 50_000
