"""Merging into a blob store: groups that were merged before are found, not made again."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import align
from services.model.blob_store import BlobStore
from services.model.build import Builder, BuildSettings
from services.model.checkpoint import BaseModel, read_base
from services.model.families.base import ExpertStack
from services.model.merged_blobs import BuiltGroups, read_merged, write_merged
from services.model.merges import merge_method, merge_methods, merge_shares
from services.model.merging import ingredients, merged_experts
from tests.unit.pico import pico_tasks, write_pico_checkpoint

FIRST = LayerPlan(((0, 5), (2, 1, 7), (3,), (6, 4)), ((0.75, 0.25), (0.5, 0.25, 0.25), (1.0,), (1.0, 0.0)))
SECOND = LayerPlan(((0, 5), (2, 1), (3,), (6, 4, 7)), ((0.75, 0.25), (0.5, 0.5), (1.0,), (1.0, 0.0, 0.0)))  # one group is another


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> BaseModel:
    return read_base(write_pico_checkpoint(tmp_path_factory.mktemp("pico")), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture
def store(tmp_path) -> BlobStore:
    return BlobStore(tmp_path / "blobs", 1 << 40)


def make_plan(base: BaseModel, layer: LayerPlan = FIRST, method: str = "m-smoe") -> MergePlan:
    return MergePlan(base.base_id, method, (layer,) * len(base.model.experts))


def zeroed(base: BaseModel) -> BaseModel:
    """The same model by name, whose experts are all zero: what is merged from it shows that it was merged."""
    experts = [ExpertStack({n: torch.zeros_like(w) for n, w in stack.weights.items()}, stack.index_map) for stack in base.model.experts]
    return replace(base, model=base.model.with_experts(experts))


def test_blobs_hold_what_merging_in_memory_gives(base, store, tmp_path):
    plan, aligned = make_plan(base), align(base)
    refs = write_merged(base, aligned, plan, store, BuiltGroups(tmp_path / "groups.json", base))
    assert [(ref.layer, ref.group) for ref in refs] == [(layer, group) for layer in range(4) for group in range(4)]
    for read, merged in zip(read_merged(base, plan, refs, store), merged_experts(base, aligned, plan), strict=True):
        assert all(torch.equal(read.weights[name], merged.weights[name]) for name in merged.weights)
        assert torch.equal(read.index_map, merged.index_map)


def test_only_groups_that_changed_are_merged(base, store, tmp_path):
    built = BuiltGroups(tmp_path / "groups.json", base)
    first = write_merged(base, align(base), make_plan(base), store, built)
    built.save(store)
    again = BuiltGroups(tmp_path / "groups.json", base)
    second = write_merged(zeroed(base), align(base), make_plan(base, SECOND), store, again)
    same = [one.digest == other.digest for one, other in zip(first, second, strict=True)]
    assert same == [True, False, True, True] * 4
    assert all(not tensor.any() for tensor in store.read(second[1].digest).values())


def test_a_group_whose_blob_was_dropped_is_merged_again(base, store, tmp_path):
    built = BuiltGroups(tmp_path / "groups.json", base)
    first = write_merged(base, align(base), make_plan(base), store, built)
    (store.directory / first[5].digest).unlink()
    assert write_merged(base, align(base), make_plan(base), store, built) == first
    assert not store.missing(ref.digest for ref in first)


def test_what_was_built_is_forgotten_with_its_blob_and_a_damaged_file_is_no_error(base, store, tmp_path):
    path = tmp_path / "groups.json"
    built = BuiltGroups(path, base)
    refs = write_merged(base, align(base), make_plan(base), store, built)
    groups = ingredients(make_plan(base))
    (store.directory / refs[0].digest).unlink()
    built.save(store)
    again = BuiltGroups(path, base)
    assert again.blob(0, groups[0][0]) is None
    assert again.blob(0, groups[0][1]) == (refs[1].digest, refs[1].size_bytes)
    path.write_bytes(b"\x80\x04")
    assert BuiltGroups(path, base).blob(0, groups[0][1]) is None


def test_methods_that_come_to_the_same_share_their_groups(base):
    averaged, dominant = ingredients(make_plan(base)), ingredients(make_plan(base, method="dominant"))
    assert [one == other for one, other in zip(averaged[0], dominant[0], strict=True)] == [False, False, True, True]
    assert averaged[0][3].members == (6,), "a member that counts for nothing is no ingredient"


@pytest.mark.parametrize("name", merge_methods())
def test_the_shares_of_a_method_are_its_rule(name):
    members, coefficients = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)), (0.5, 0.25, 0.25, 0.0)
    shares = merge_shares(name)
    assert shares is not None
    told = torch.tensor(shares(coefficients))
    torch.testing.assert_close(merge_method(name)(members, torch.tensor(coefficients)), torch.einsum("e,eio->io", told, members))


def test_a_damaged_blob_of_an_earlier_build_is_made_again(base, tmp_path):
    builder = Builder(base, pico_tasks(), tmp_path, BuildSettings(profiled_items=6, measured_items=3))
    budget = base.full_bytes // 2
    first = builder.build({"left": 1.0}, budget)
    shared = first.group_blobs(0)[0].digest
    path = builder.store.directory / shared
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (builder.cache_dir / "manifests" / f"{first.version}.pb").unlink()
    again = builder.build({"left": 1.0}, budget)
    assert (again.version, again.digests) == (first.version, first.digests)
    assert path.read_bytes() == data
