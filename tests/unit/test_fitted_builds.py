"""Versions of fitted experts: built to a byte budget from one table of forms, written a blob an expert, and read back to the last bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from services.core.merging.errors import BudgetError, OptionError
from services.core.merging.values import DROPPED
from services.model.build import Builder, BuildOptions
from services.model.checkpoint import read_base
from services.model.errors import BlobError
from services.model.evidence import gather
from services.model.expert_store import read_experts, read_model
from services.model.families.packed_weights import PackedWeights
from services.model.form_table import form_table, forms_of, refuse_too_large
from services.model.manifest import PACKED, ModelManifest
from services.model.memory import non_expert_bytes, unique_bytes
from services.model.recovery import examples
from services.worker.loading import check_answers
from tests.unit.pico import pico_tasks, write_pico_checkpoint
from tests.unit.pico_decoders import write_pico_decoder
from tests.unit.serving_builders import copied

FITTED = BuildOptions(method="fitted")
PROMPTS = [[5, 9, 11, 1], [7, 1], [20, 21, 22, 23, 1]]
TARGETS = [[8, 9, 1], [10, 1], [1]]


@pytest.fixture(scope="module", params=["switch", "mixtral"])
def builder(request, tmp_path_factory) -> Builder:
    directory = tmp_path_factory.mktemp("pico")
    if request.param == "switch":
        write_pico_checkpoint(directory)
    else:
        write_pico_decoder(directory, request.param)
    return Builder(read_base(directory), pico_tasks(), tmp_path_factory.mktemp("cache"))


def budget_for_bits(builder: Builder, bits: float) -> int:
    weights = sum(layer.num_experts * layer.expert_params for layer in builder.base.model.shape.layers)
    return non_expert_bytes(builder.base.model) + int(weights * bits / 8)


def logits(model):
    with torch.no_grad():
        return model.teacher_forced(PROMPTS, TARGETS)


@pytest.mark.parametrize("bits", [0.3, 1.0, 2.5, 6.0])
def test_a_build_never_exceeds_its_budget_and_leaves_less_than_the_smallest_form_of_an_expert(builder, bits):
    budget_bytes = budget_for_bits(builder, bits)
    manifest = builder.build({"left": 0.7, "right": 0.3}, budget_bytes, FITTED)
    forms, sizes = forms_of(builder.base)
    assert 0 <= budget_bytes - manifest.model_bytes < max(np.diff(np.sort(sizes, axis=1)).max(), sizes[:, 1].max())
    assert manifest.method == "fitted"
    assert manifest.experts_kept == sum(blob.kind == PACKED for blob in manifest.blobs)
    model = builder.model(manifest).model
    assert unique_bytes(model) == manifest.model_bytes
    assert sum(stack.num_bytes() for stack in model.experts) == manifest.model_bytes - non_expert_bytes(builder.base.model)
    assert all(isinstance(stack.weights, PackedWeights) for stack in model.experts)
    assert forms[0] == DROPPED


def test_a_version_is_rebuilt_from_blobs_alone_and_answers_its_check_prompts(builder, tmp_path):
    manifest = builder.build({"left": 1.0}, budget_for_bits(builder, 1.5), FITTED)
    plan = builder.plan({"left": 1.0}, manifest.budget_bytes, FITTED)
    made = builder.base.model.with_experts(builder.fitted.stacks(plan))
    served = read_model(copied(builder.store, tmp_path, manifest.digests), manifest)
    assert torch.equal(logits(served.model), logits(made))
    check_answers(served.model, served.tokenizer, manifest)
    assert ModelManifest.from_proto(manifest.to_proto()).to_proto() == manifest.to_proto()


def test_an_update_ships_and_reads_only_experts_whose_form_changed(builder, tmp_path):
    budget_bytes = budget_for_bits(builder, 2.0)
    first = builder.build({"left": 1.0}, budget_bytes, FITTED)
    second = builder.build({"right": 1.0}, budget_bytes, FITTED)
    changed = second.digests - first.digests
    assert 0 < len(changed) < len(second.digests)
    store = copied(builder.store, tmp_path, first.digests)
    present = read_model(store, first).model
    for digest in first.digests - {first.rest.digest}:
        (tmp_path / digest).unlink()
    store = copied(builder.store, tmp_path, changed)
    updated = present.with_experts(read_experts(store, second, present, first))
    assert torch.equal(logits(updated), logits(builder.model(second).model))
    assert all(new is old for new, old in zip(read_experts(store, first, present, first), present.experts, strict=True))


def test_an_edge_goes_from_merged_experts_to_fitted_ones_and_back(builder):
    budget_bytes = budget_for_bits(builder, 16.0)
    merged = builder.build({"left": 1.0}, budget_bytes, BuildOptions(method="dominant"))
    fitted = builder.build({"left": 1.0}, budget_bytes, FITTED)
    present = builder.model(merged).model
    there = present.with_experts(read_experts(builder.store, fitted, present, merged))
    assert torch.equal(logits(there), logits(builder.model(fitted).model))
    back = there.with_experts(read_experts(builder.store, merged, there, fitted))
    assert torch.equal(logits(back), logits(present))


def test_equal_requests_give_one_version_also_from_a_table_that_was_kept(builder):
    budget_bytes = budget_for_bits(builder, 1.0)
    manifest = builder.build({"left": 0.5, "right": 0.5}, budget_bytes, FITTED)
    again = Builder(builder.base, pico_tasks(), builder.cache_dir)
    assert again.build({"right": 0.5, "left": 0.5}, budget_bytes, FITTED).version == manifest.version
    assert again.plan(manifest.mix, budget_bytes, FITTED) == builder.plan(manifest.mix, budget_bytes, FITTED)


def test_a_damaged_table_is_made_again(tmp_path):
    base = read_base(write_pico_checkpoint(tmp_path / "model", num_experts=2, d_ff=8))
    shown = {"left": examples(base.tokenizer, base.model.shape, pico_tasks().of_type("left"))}
    made = form_table(base, shown, tmp_path / "cache")
    [path] = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    again = form_table(base, shown, tmp_path / "cache")
    np.testing.assert_array_equal(again.costs.errors, made.costs.errors)
    assert all(
        torch.equal(one, other)
        for held, fresh in zip(again.records, made.records, strict=True)
        for one, other in zip(held, fresh, strict=True)
    )


def test_more_room_moves_answers_less(builder):
    evidence = gather(builder.base, builder._examples_of("left"))

    def moved(bits):
        plan = builder.plan({"left": 1.0}, budget_for_bits(builder, bits), FITTED)
        return evidence.divergence(builder.base.model.with_experts(builder.fitted.stacks(plan)))

    own = [moved(bits) for bits in (0.5, 1.5, 4.0)]
    assert own == sorted(own, reverse=True)


def test_a_budget_that_holds_everything_gives_the_full_model_bit_for_bit(builder):
    manifest = builder.build({"left": 1.0}, builder.base.full_bytes, FITTED)
    assert manifest.model_bytes == builder.base.full_bytes
    assert torch.equal(logits(builder.model(manifest).model), logits(builder.base.model))


def test_a_budget_without_room_for_the_rest_of_the_model_is_refused_with_what_works(builder):
    rest = non_expert_bytes(builder.base.model)
    with pytest.raises(BudgetError, match=str(rest)):
        builder.build({"left": 1.0}, rest - 1, FITTED)
    assert builder.build({"left": 1.0}, rest, FITTED).experts_kept == 0


def test_a_model_whose_table_would_be_too_large_is_refused(builder, monkeypatch):
    monkeypatch.setattr("services.model.form_table.MAX_TABLE_BYTES", 1000)
    with pytest.raises(OptionError, match="too many"):
        refuse_too_large(builder.base)


def test_blobs_that_are_no_packed_experts_of_this_layer_are_refused(builder, tmp_path):
    manifest = builder.build({"left": 1.0}, budget_for_bits(builder, 1.5), FITTED)
    store = copied(builder.store, tmp_path, manifest.digests)

    def swapped(index, **changes):
        blobs = list(manifest.blobs)
        blobs[index] = replace(blobs[index], **changes)
        return replace(manifest, blobs=tuple(blobs))

    [(name, record)] = store.read(manifest.blobs[0].digest).items()
    short, _ = store.put({name: record[:-1]})
    unnamed, _ = store.put({"wi": record})
    two, _ = store.put({name: record, "more": record.clone()})
    endless, _ = store.put({name: torch.cat([torch.tensor([float("inf")]).view(torch.uint8), record[4:]])})
    for digest, problem in ((short, "takes"), (unnamed, "not the name"), (two, "2 tensors"), (endless, "NaN or infinity")):
        with pytest.raises(BlobError, match=problem):
            read_model(store, swapped(0, digest=digest))
    with pytest.raises(BlobError, match="beside others"):
        read_model(store, swapped(0, kind="group"))
    first, last = manifest.group_blobs(0)[0].digest, manifest.group_blobs(0)[-1].digest
    turned = tuple(replace(blob, digest={first: last, last: first}.get(blob.digest, blob.digest)) for blob in manifest.blobs)
    with pytest.raises(BlobError, match="order of their forms"):
        read_model(store, replace(manifest, blobs=turned))
    with pytest.raises(BlobError, match="groups that its blobs do not hold"):
        read_model(store, replace(manifest, blobs=manifest.blobs[1:]))
    wider, _ = store.put({"1bit-wi=8x8-wo=8x8": torch.zeros(40, dtype=torch.uint8)})
    with pytest.raises(BlobError, match=r"packed shapes|takes|order"):
        read_model(store, swapped(0, digest=wider))
