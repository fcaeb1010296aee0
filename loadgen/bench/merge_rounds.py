"""The timed parts of the merging benchmark: a re-merge into blobs, and both sides layer by layer in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from loadgen.bench.plain_m_smoe import Expert, PlainLayer, groups, merged
from loadgen.bench.routing import equally, logits_of
from services.core.merging.plan import mixed_statistics
from services.core.merging.values import BaseProfiles, MergePlan
from services.model.alignment import Aligned
from services.model.blob_store import BlobStore
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack
from services.model.families.tensors import read_json
from services.model.manifest import BlobRef
from services.model.merged_blobs import BuiltGroups, write_merged
from services.model.merging import ingredients, merged_group, new_room

_READ_BYTES = 16 << 20

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Request:
    """Profiles of one routing, and how a plan for a mix of them is made."""

    profiles: BaseProfiles
    plan: Callable[..., MergePlan]  # mix, and the plan there is

    @property
    def all_equally(self) -> Mapping[str, float]:
        return equally(self.profiles)

    def prepared_mixes(self) -> list[Mapping[str, float]]:
        return [*({t: 1.0} for t in self.profiles.task_types), self.all_equally]

    def moved(self, share: float) -> dict[str, float] | None:
        """All equally, but `share` of the tasks moved to the first type; none where there is one type."""
        first, *others = self.profiles.task_types
        if not others:
            return None
        mix = dict(self.all_equally)
        return {first: mix[first] + share, **{t: mix[t] - share / len(others) for t in others}}


@dataclass(frozen=True, slots=True)
class Beside:
    """Seconds of all layers, medians of the rounds; planning counts for ours."""

    plan_s: float
    ours_s: float
    plain_s: float
    in_place_s: float  # the plain one as a tighter loop
    experts_read: int
    groups_agree: bool
    max_abs_diff: float


def remerge(base: BaseModel, aligned: Aligned, plan: MergePlan, directory: Path) -> list[BlobRef]:
    """What a builder does between the plan and the measuring: blobs of every group, synced, and the file that remembers them."""
    store = BlobStore(directory / "blobs", 1 << 62)
    built = BuiltGroups(directory / "groups.json", base)
    refs = write_merged(base, aligned, plan, store, built)
    built.save(store)
    return refs


def beside(
    base: BaseModel, aligned: Aligned, request: Request, plan: MergePlan, refs: Sequence[BlobRef], directory: Path, rounds: int
) -> Beside:
    """Both sides from the page cache to merged experts in memory, each layer in turn, and how far the blobs are from the plain one's."""
    store = BlobStore(directory / "blobs", 1 << 62)
    plain = plain_layers(base, request, plan)
    groups_agree = all(groups(layer) == [list(group) for group in made.groups] for layer, made in zip(plain, plan.layers, strict=True))
    for layer in plain:  # pages that were read in a row are cheaper to map than those that were written: both sides have the former
        forget_pages(layer.file)
    rooms = [new_room(base.model.experts[0]) for _ in range(max(len(layer.groups) for layer in plan.layers))]
    plan_s, ours_s, plain_s, in_place_s, apart = [], [], [], [], 0.0
    for n in range(rounds):
        plan_s.append(_seconds(lambda: request.plan(request.all_equally))[0])
        ours_s.append(plan_s[-1])
        plain_s.append(0.0)
        in_place_s.append(0.0)
        for number, layer in enumerate(plain):
            orders = _orders(aligned, number, plan)
            warm(base.model.experts[number])
            ours_s[-1] += _seconds(lambda: _merged_layer(base, aligned, plan, number, rooms))[0]  # noqa: B023
            warm_file(layer.file)
            seconds, experts = _seconds(lambda: merged(layer, orders))  # noqa: B023
            plain_s[-1] += seconds
            in_place_s[-1] += _seconds(lambda: merged(layer, orders, in_place=True))[0]  # noqa: B023
            if n == 0:
                apart = max(apart, _apart(experts, store, [ref for ref in refs if ref.layer == number]))
    read = sum(len(group.members) for layer in ingredients(plan) for group in layer)
    medians = [statistics.median(seconds) for seconds in (plan_s, ours_s, plain_s, in_place_s)]
    return Beside(medians[0], medians[1], medians[2], medians[3], read, groups_agree, apart)


def aligned_again(base: BaseModel, aligned: Aligned, request: Request, plan: MergePlan) -> float:
    """Seconds that the plain one needs to find the orders of all layers: those of one layer, by pairs."""
    pairs = [sum(len(group) - 1 for group in layer.groups) for layer in plan.layers]
    number = int(np.argsort(pairs)[len(pairs) // 2])
    layer = plain_layers(base, request, plan)[number]
    given_s = _seconds(lambda: merged(layer, _orders(aligned, number, plan)))[0]
    found_s = _seconds(lambda: merged(layer, None))[0]
    return (found_s - given_s) / max(pairs[number], 1) * sum(pairs)


def plain_layers(base: BaseModel, request: Request, plan: MergePlan) -> list[PlainLayer]:
    """The plan's dominant experts and coefficients, router logits with the profile's Gram matrix, and where the experts' weights lie."""
    index = read_json(base.directory / "model.safetensors.index.json")["weight_map"]
    assert isinstance(index, dict)
    layers = []
    for number, (made, statistic) in enumerate(zip(plan.layers, mixed_statistics(request.profiles, request.all_equally), strict=True)):
        shares = {
            expert: share for group, of in zip(made.groups, made.coefficients, strict=True) for expert, share in zip(group, of, strict=True)
        }
        dominants = sorted((group[0] for group in made.groups), key=lambda expert: (-statistic.counts[expert], expert))
        block = base.model.shape.layers[number].name
        prefix = f"{block}.layer.{1 if block.startswith('encoder') else 2}.mlp.experts"
        file = base.directory / str(index[f"{prefix}.expert_0.wi.weight"])
        layers.append(PlainLayer(file, prefix, logits_of(statistic, number), dominants, [shares[e] for e in sorted(shares)]))
    return layers


def warm(stack: ExpertStack) -> None:
    """A layer's experts into the page cache."""
    for weight in stack.weights.values():
        weight.sum(dtype=torch.float64)
    stack.release()


def warm_file(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(_READ_BYTES):
            pass


def drop_page_cache(base: BaseModel, directory: Path) -> None:
    """Files below `directory`, the mapped experts among them, are read from the disk again."""
    for stack in base.model.experts:
        stack.release()
    for path in directory.rglob("*.safetensors"):
        forget_pages(path)


def forget_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _merged_layer(base: BaseModel, aligned: Aligned, plan: MergePlan, number: int, rooms: Sequence[Mapping[str, Tensor]]) -> list[Expert]:
    """As `write_merged` does it, memory of an earlier layer's experts used again."""
    stack = base.model.experts[number]
    groups = ingredients(plan)[number]
    experts = [dict(merged_group(stack, aligned, number, group, room)) for group, room in zip(groups, rooms, strict=False)]
    stack.release()
    return experts


def _orders(aligned: Aligned, number: int, plan: MergePlan) -> dict[tuple[int, int], Tensor]:
    """Those of all members. One that counts for nothing was never aligned: its order cannot matter, and the cheapest is given."""
    orders = {}
    for group in plan.layers[number].groups:
        for expert in group[1:]:
            known = aligned.has(number, group[0], expert)
            orders[group[0], expert] = torch.from_numpy(aligned.order(number, group[0], expert) if known else aligned.order(number, 0, 0))
    return orders


def _apart(experts: Sequence[Expert], store: BlobStore, refs: Sequence[BlobRef]) -> float:
    built = [store.read(ref.digest) for ref in sorted(refs, key=lambda ref: ref.group)]
    return max(float((one[name] - other[name]).abs().max()) for one, other in zip(experts, built, strict=True) for name in one)


def _seconds(run: Callable[[], R]) -> tuple[float, R]:
    began_s = time.perf_counter()
    result = run()
    return time.perf_counter() - began_s, result
