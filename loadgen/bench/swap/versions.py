"""Versions of a random model for a drifting mix, put into a merger's cache as its builder would leave them.

Planned by the product's planner, each against the one before, from profiles measured on a real model; merged by its averaging, layer by
layer, so that the whole model is never in memory. Hidden units are not aligned and nothing is scored: neither changes what a swap costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import blake3
import numpy as np
import torch
from torch import Tensor

from loadgen.bench.sizes import Sizes
from loadgen.bench.swap.shapes import SHAPES, num_words, random_experts, random_rest, word_tokenizer
from services.core.merging.plan import make_plan
from services.core.merging.recipes import PAPER
from services.core.merging.values import BaseProfiles, Budget, MergePlan
from services.model.build import Builder
from services.model.expert_store import read_experts, read_model, write_rest
from services.model.families.base import MoeModel
from services.model.greedy import greedy
from services.model.manifest import GROUP, BlobRef, CheckPrompt, ModelManifest, mixed_frequencies
from services.model.memory import non_expert_bytes
from services.model.merges import merge_method
from services.model.tensor_files import write_atomically
from services.model.tokenizer import Tokenizer

GRID = 20  # shares of a mix are multiples of 1 / GRID
DRIFT_STEPS = 2  # of these, between two versions: a tenth of all tasks becomes another type's
BYTES_PER_PARAM = 2
CHECK_PROMPTS, CHECK_WORDS, CHECK_TOKENS = 3, 12, 4

Tell = Callable[[str], None]
GroupKey = tuple[int, tuple[int, ...], tuple[float, ...]]  # layer, members, coefficients


@dataclass(frozen=True, slots=True)
class VersionsOptions:
    shape: str
    fraction: float  # of experts kept
    num_versions: int
    seed: int


def make_versions(builder: Builder, options: VersionsOptions, tell: Tell) -> list[ModelManifest]:
    """In the order in which the mix drifts. What profiles the mixes are of is the builder's base model."""
    shape = SHAPES[options.shape]
    tokenizer = word_tokenizer(shape)
    rest = random_rest(shape, options.seed)
    profiles = builder.calibration.profiles
    mixes = drifting(profiles.task_types, options.num_versions, np.random.default_rng(options.seed))
    plans = plans_of(profiles, mixes, _budget(shape, rest, options.fraction))
    blobs = _write_groups(builder, shape, plans, options.seed, tell)
    rest_blob = write_rest(builder.store, rest, _json(shape), tokenizer)
    manifests = [
        _manifest(builder, shape, rest, mix, plan, _blobs_of(plan, blobs, rest_blob), number)
        for number, (mix, plan) in enumerate(zip(mixes, plans, strict=True))
    ]
    tell(f"answers of {len(manifests)} versions to their check prompts")
    checked = _with_answers(builder, shape, tokenizer, manifests, options.seed)
    for manifest in checked:
        path = builder.cache_dir / "manifests" / f"{manifest.version}.pb"
        write_atomically(path, manifest.to_proto().SerializeToString(deterministic=True))
    return checked


def drifting(task_types: Sequence[str], count: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Mixes on the grid, each a step of the drift from the one before."""
    steps = rng.multinomial(GRID, np.full(len(task_types), 1 / len(task_types)))
    mixes = []
    for _ in range(count):
        mixes.append({task_type: int(n) / GRID for task_type, n in zip(task_types, steps, strict=True) if n})
        source = int(steps.argmax())
        target = int(rng.choice([n for n in range(len(steps)) if n != source]))
        moved = min(DRIFT_STEPS, int(steps[source]))
        steps[source] -= moved
        steps[target] += moved
    return mixes


def plans_of(profiles: BaseProfiles, mixes: Sequence[Mapping[str, float]], budget: Budget) -> list[MergePlan]:
    """Each against the plan before it, as for an edge that holds that one. The paper's recipe changes more groups than the product's."""
    plans: list[MergePlan] = []
    for mix in mixes:
        present = plans[-1] if plans else None
        plans.append(make_plan(profiles, mix, budget, allocation=PAPER.allocation, method=PAPER.method, present=present))
    return plans


def _budget(shape: Sizes, rest: MoeModel, fraction: float) -> Budget:
    expert_bytes = BYTES_PER_PARAM * shape.expert_params
    num_kept = round(fraction * shape.num_moe_layers * shape.num_experts)
    rest_bytes = non_expert_bytes(rest)
    return Budget(rest_bytes + num_kept * expert_bytes, rest_bytes, (expert_bytes,) * shape.num_moe_layers)


def _write_groups(builder: Builder, shape: Sizes, plans: Sequence[MergePlan], seed: int, tell: Tell) -> dict[GroupKey, BlobRef]:
    """Every group of any plan, once."""
    written: dict[GroupKey, BlobRef] = {}
    for layer in range(shape.num_moe_layers):
        tell(f"merging layer {layer + 1} of {shape.num_moe_layers} for {len(plans)} versions")
        merger = _LayerMerger(random_experts(shape, layer, seed))
        for plan in plans:
            for members, coefficients in zip(plan.layers[layer].groups, plan.layers[layer].coefficients, strict=True):
                key = (layer, members, coefficients)
                if key not in written:
                    digest, size_bytes = builder.store.put(merger.merged(members, coefficients, plan.method))
                    written[key] = BlobRef(digest, size_bytes, GROUP, layer)
    return written


class _LayerMerger:
    """Groups of one layer's experts, one after the other; members are gathered in memory that stays, as fresh pages cost more than sums."""

    def __init__(self, experts: Mapping[str, Tensor]) -> None:
        self._experts = {name: weight.float() for name, weight in experts.items()}
        self._gathered = {name: torch.empty_like(weight) for name, weight in self._experts.items()}

    def merged(self, members: tuple[int, ...], coefficients: tuple[float, ...], method: str) -> dict[str, Tensor]:
        if len(members) == 1:
            return {name: weight[members[0]].bfloat16() for name, weight in self._experts.items()}
        rule, shares, rows = merge_method(method), torch.tensor(coefficients), torch.tensor(members)
        merged = {}
        for name, weight in self._experts.items():
            gathered = torch.index_select(weight, 0, rows, out=self._gathered[name][: len(members)])
            merged[name] = rule(gathered, shares).bfloat16()
        return merged


def _blobs_of(plan: MergePlan, written: Mapping[GroupKey, BlobRef], rest_blob: BlobRef) -> tuple[BlobRef, ...]:
    groups = [
        replace(written[layer, members, coefficients], group=group)
        for layer, of_layer in enumerate(plan.layers)
        for group, (members, coefficients) in enumerate(zip(of_layer.groups, of_layer.coefficients, strict=True))
    ]
    return (*groups, rest_blob)


def _manifest(
    builder: Builder, shape: Sizes, rest: MoeModel, mix: Mapping[str, float], plan: MergePlan, blobs: tuple[BlobRef, ...], number: int
) -> ModelManifest:
    rest_bytes, expert_bytes = non_expert_bytes(rest), BYTES_PER_PARAM * shape.expert_params
    num_experts = shape.num_moe_layers * shape.num_experts
    model_bytes = rest_bytes + plan.experts_kept * expert_bytes
    return ModelManifest(
        version=blake3.blake3(f"{number} {plan.plan_id} {blobs[-1].digest}".encode()).hexdigest(length=8),
        base_model=f"random-{blobs[-1].digest[:16]}",
        plan_id=plan.plan_id,
        method=plan.method,
        mix=mix,
        dtype="bfloat16",
        budget_bytes=model_bytes,
        model_bytes=model_bytes,
        full_model_bytes=rest_bytes + num_experts * expert_bytes,
        experts_kept=plan.experts_kept,
        experts_total=num_experts,
        blobs=blobs,
        index_maps=tuple(layer.index_map for layer in plan.layers),
        frequencies=mixed_frequencies(builder.calibration.task_profiles(), mix),
        quality={},
        quality_before_recovery={},
        profiles={},
        check_prompts=(),
        durations_s={},
        config_json=_json(shape),
    )


def _with_answers(
    builder: Builder, shape: Sizes, tokenizer: Tokenizer, manifests: Sequence[ModelManifest], seed: int
) -> list[ModelManifest]:
    """Each with what the version itself answers, read back from its blobs as a worker does."""
    rng = np.random.default_rng(seed)
    prompts = [" ".join(f"w{n}" for n in rng.integers(num_words(shape), size=CHECK_WORDS)) for _ in range(CHECK_PROMPTS)]
    model, before, checked = read_model(builder.store, manifests[0]).model, manifests[0], []
    for manifest in manifests:
        model = model.with_experts(read_experts(builder.store, manifest, model, before))
        answers = [tokenizer.decode(greedy(model, [tokenizer.encode(prompt)], CHECK_TOKENS)[0]) for prompt in prompts]
        checked.append(replace(manifest, check_prompts=tuple(map(CheckPrompt, prompts, answers))))
        before = manifest
    return checked


def _json(shape: Sizes) -> str:
    import json

    return json.dumps(shape.config())
