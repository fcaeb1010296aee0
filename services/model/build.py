"""Builds model versions: plan, merge, recover, measure, check, write. Same request, same version; a version that exists returns at once.

Calibration and alignment of the base model are made once and cached on disk. One thread at a time.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import blake3
import numpy as np

from moedge.v1 import merger_pb2
from services.core.merging.budget import full_bytes
from services.core.merging.mix import explain
from services.core.merging.plan import make_plan
from services.core.merging.present import KEEP_GAIN
from services.core.merging.recipes import BEST, CANDIDATES, FITTED, PAPER, PRODUCT
from services.core.merging.values import ExpertForm, Frequencies, LayerPlan, MergePlan
from services.model.aligning_ahead import align_ahead
from services.model.alignment import Aligned, align
from services.model.blob_store import BlobStore
from services.model.calibration import Calibration, Measured, Scorer, calibrate, calibration_id, measure
from services.model.checkpoint import BaseModel
from services.model.errors import BlobError
from services.model.expert_store import ServedModel, read_model, write_experts, write_rest
from services.model.families.base import MoeModel
from services.model.fitted_builds import RECIPE, FittedBuilds
from services.model.greedy import greedy
from services.model.manifest import BlobRef, CheckPrompt, ModelManifest, mixed_frequencies
from services.model.memory import budget_for, unique_bytes
from services.model.merged_blobs import BuiltGroups, read_merged, write_merged
from services.model.merges import check_method
from services.model.merging import merged_experts
from services.model.recovery import Example, RecoveryOptions, examples, recover
from services.model.tensor_files import write_atomically
from services.tasks.scoring import SCORERS
from services.tasks.values import TaskItem, TaskSet

Progress = Callable[[str, float], None]  # phase, fraction of the whole build

_VERSION = re.compile(r"[0-9a-f]{16}")
_RECIPE = "1"  # raise it when the same plan would give another model


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How to plan. `raw_frequencies` (paper mode) stand in for those of the mix.

    `keep_gain`: what a change of a group of `present_version` must gain; more ships less (`core/merging/present.py`).
    """

    method: str = PRODUCT.method
    allocation: str = PRODUCT.allocation
    grouping: str = PRODUCT.grouping
    recovery_steps: int = 0
    present_version: str = ""
    keep_gain: float = KEEP_GAIN
    raw_frequencies: Frequencies | None = None


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """What building may cost."""

    profiled_items: int = 512  # of each task type, once per base model
    fitted_items: int = 2048  # of each task type at most, that experts are fitted to once, where the method is "fitted"
    measured_items: int = 64  # of each task type, in every build
    num_check_prompts: int = 3
    cache_limit_bytes: int = 4 << 30
    reserve_bytes: int = 0
    recovery: RecoveryOptions = field(default_factory=lambda: RecoveryOptions(steps=0))


MAX_PLANS = 1000  # kept, also of versions whose blobs are gone


class _Phases:
    """Seconds by phase, and progress told as they begin."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.durations_s: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str, fraction: float) -> Iterator[None]:
        if self._progress is not None:
            self._progress(name, fraction)
        start_at_s = time.perf_counter()
        yield
        self.durations_s[name] = time.perf_counter() - start_at_s


class Builder:
    """Builds versions of one base model, with one calibration task set, into one cache directory."""

    def __init__(self, base: BaseModel, calibration_tasks: TaskSet, cache_dir: Path, settings: BuildSettings | None = None) -> None:
        self.base = base
        self.settings = settings or BuildSettings()
        self.cache_dir = cache_dir
        self.store = BlobStore(cache_dir / "blobs", self.settings.cache_limit_bytes)
        self.scorers: Mapping[str, Scorer] = {t: SCORERS[name] for t, name in calibration_tasks.scorers.items()}
        self._items = {t: _shuffled(calibration_tasks.of_type(t)) for t in calibration_tasks.task_types if calibration_tasks.of_type(t)}
        self._examples: dict[str, list[Example]] = {}

    @cached_property
    def calibration(self) -> Calibration:
        return calibrate(self.base, self._of_each(self.settings.profiled_items), self.scorers, self.cache_dir)

    @cached_property
    def aligned(self) -> Aligned:
        return align(self.base, self.cache_dir)

    @cached_property
    def _built(self) -> BuiltGroups:
        return BuiltGroups(self.cache_dir / f"groups-{self.base.base_id}-{self.base.dtype}.json", self.base)

    @cached_property
    def fitted(self) -> FittedBuilds:
        """What builds by the method "fitted" are made of."""

        def shown() -> dict[str, list[Example]]:
            return {t: self._examples_of(t)[: self.settings.fitted_items] for t in self._items}

        return FittedBuilds(self.base, shown, self.cache_dir)

    @cached_property
    def _calibration_id(self) -> str:
        return calibration_id(self.base, self._items)

    def prepare(self, budgets_bytes: Sequence[int] = (), options: BuildOptions | None = None) -> None:
        """The work that is done once per base model.

        With budgets, also the orders of experts that merges for one task type or for all ask for in such memories. Those that only
        another mix asks for are found with it.
        """
        _ = self.calibration, self.aligned
        task_types = self.calibration.profiles.task_types
        mixes = [*({t: 1.0} for t in task_types), dict.fromkeys(task_types, 1 / len(task_types))]
        wanted = replace(options or BuildOptions(), method=PAPER.method)  # no other method asks for more pairs
        align_ahead(self.aligned, [self.plan(mix, budget, wanted) for budget in budgets_bytes for mix in mixes])

    def reclaim(self, left_before_s: float) -> None:
        """Drop what a killed process left half written, untouched since that time, and what the limit asks for."""
        for junk in [path for kind in ("blobs", "manifests", "plans") for path in (self.cache_dir / kind).glob(".*")]:
            with suppress(FileNotFoundError):  # another process that builds into this cache has finished it
                if junk.stat().st_mtime < left_before_s:
                    junk.unlink()
        self._drop_above_limit()

    def build(
        self, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions | None = None, progress: Progress | None = None
    ) -> ModelManifest:
        """The version for this traffic in this memory. Raises the core's BudgetError, MixError or OptionError on a bad request."""
        options = options or BuildOptions()
        check_method(options.method)
        if options.method == BEST:
            return self._best(mix, budget_bytes, options, progress)
        clock = _Phases(progress)
        with clock.phase("prepare", 0.0):
            self.prepare()
        with clock.phase("plan", 0.1):
            mix = self._mix(mix, options)
            plan = self.plan(mix, budget_bytes, options)
        version = self._version(plan, mix)
        cached = self.manifest(version)
        if cached is not None and not self.store.missing(cached.digests):
            return replace(cached, budget_bytes=budget_bytes)
        model, experts, before, measured = self._made(plan, mix, clock)
        with clock.phase("check", 0.85):
            checks = self._check_prompts(model, measured)
        with clock.phase("write", 0.9):
            blobs = [*experts, write_rest(self.store, model, self.base.config_json, self.base.tokenizer)]
        manifest = ModelManifest(
            version=version,
            base_model=self.base.base_id,
            plan_id=plan.plan_id,
            method=plan.method,
            mix=mix,
            dtype=self.base.dtype,
            budget_bytes=budget_bytes,
            model_bytes=unique_bytes(model),
            full_model_bytes=self.base.full_bytes,
            experts_kept=plan.experts_kept,
            experts_total=sum(layer.num_experts for layer in model.shape.layers),
            blobs=tuple(blobs),
            index_maps=tuple(layer.index_map for layer in plan.layers),
            frequencies=mixed_frequencies(measured.profiles, mix),
            quality=measured.quality,
            quality_before_recovery=before.quality,
            profiles=measured.profiles,
            check_prompts=checks,
            durations_s=clock.durations_s,
            config_json=self.base.config_json,
        )
        assert manifest.model_bytes <= budget_bytes
        with clock.phase("keep", 0.98):
            self._keep(manifest, plan)
        return manifest

    def _best(self, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions, progress: Progress | None) -> ModelManifest:
        """Every candidate method built, and of these the one that answers the mix best; a tie goes to the first."""

        def told(number: int) -> Progress | None:
            return None if progress is None else lambda phase, fraction: progress(phase, (number + fraction) / len(CANDIDATES))

        requests = [replace(options, method=method) for method in CANDIDATES]
        built = [self.build(mix, budget_bytes, request, told(number)) for number, request in enumerate(requests)]
        best = max(built, key=lambda manifest: sum(share * manifest.quality.get(t, 0.0) for t, share in manifest.mix.items()))
        if self.store.missing(best.digests):  # a small cache had to drop it for the candidate after it
            return self.build(mix, budget_bytes, replace(options, method=best.method), progress)
        self.store.pin("latest", best.digests)
        return best

    def plan(self, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions) -> MergePlan:
        """The plan alone; touches no weights."""
        present = self._plan_of(options.present_version) if options.present_version else None
        budget = budget_for(self.base.model, budget_bytes, self.settings.reserve_bytes)
        if options.method == FITTED and budget_bytes < full_bytes(budget, self.base.model.shape.layers[0].num_experts):
            return self.fitted.plan(mix, budget, present)
        if present is not None and present.method == FITTED:
            present = None
        return make_plan(
            self.calibration.profiles,
            mix,
            budget,
            allocation=options.allocation,
            grouping=options.grouping,
            method=options.method,
            present=present,
            frequencies=options.raw_frequencies,
            recovery_steps=options.recovery_steps,
            keep_gain=options.keep_gain,
        )

    def unrecovered(self, mix: Mapping[str, float], budget_bytes: int, options: BuildOptions) -> MoeModel:
        """The merged model of a request as plain averaging leaves it; kept nowhere."""
        plan = self.plan(self._mix(mix, options), budget_bytes, options)
        experts = self.fitted.stacks(plan) if plan.method == FITTED else merged_experts(self.base, self.aligned, plan)
        return self.base.model.with_experts(experts)

    def manifest(self, version: str) -> ModelManifest | None:
        """A version built before."""
        try:
            data = self._path("manifests", version, "pb").read_bytes()
        except OSError:
            return None
        written = merger_pb2.Manifest()
        written.ParseFromString(data)
        return ModelManifest.from_proto(written)

    def model(self, manifest: ModelManifest) -> ServedModel:
        """A version read back from its blobs, as a worker would."""
        return read_model(self.store, manifest, self.base.model.device, self.base.tokenizer.max_prompt_tokens)

    def items(self, task_type: str) -> Sequence[TaskItem]:
        """Calibration items of a task type, in the order in which they are used."""
        return self._items[task_type]

    def _of_each(self, num_items: int) -> dict[str, list[TaskItem]]:
        return {task_type: items[:num_items] for task_type, items in self._items.items()}

    def _mix(self, mix: Mapping[str, float], options: BuildOptions) -> dict[str, float]:
        if not mix and options.raw_frequencies is not None:
            profiles = self.calibration.profiles
            mix = explain(np.asarray(options.raw_frequencies), {t: profiles.frequencies(t) for t in profiles.task_types}).shares
        return {task_type: round(share, 9) for task_type, share in sorted(mix.items()) if share != 0}

    def _version(self, plan: MergePlan, mix: Mapping[str, float]) -> str:
        recipe = asdict(replace(self.settings.recovery, steps=plan.recovery_steps)) if plan.recovery_steps else {}
        recipe |= RECIPE if plan.method == FITTED else {}
        told = [_RECIPE, plan.plan_id, self.base.dtype, self._calibration_id, self.settings.measured_items, sorted(mix.items()), recipe]
        return blake3.blake3(json.dumps(told, sort_keys=True).encode()).hexdigest(length=8)

    def _made(self, plan: MergePlan, mix: Mapping[str, float], clock: _Phases) -> tuple[MoeModel, list[BlobRef], Measured, Measured]:
        """The model of a plan with the blobs of its experts, measured before recovery and after it."""
        with clock.phase("merge", 0.2):
            experts, model = self._merged(plan)
        before: Measured | None = None
        if plan.recovery_steps > 0:
            with clock.phase("measure_before_recovery", 0.3):
                before = self._measured(model)
            with clock.phase("recover", 0.4):
                model = self._recovered(model, mix, plan.recovery_steps)
                experts = write_experts(self.store, model.experts)
        with clock.phase("measure", 0.7):
            measured = self._measured(model)
        return model, experts, before or measured, measured

    def _merged(self, plan: MergePlan) -> tuple[list[BlobRef], MoeModel]:
        """Blobs of a plan's experts, and the model that they are."""
        if plan.method == FITTED:
            stacks = self.fitted.stacks(plan)
            return write_experts(self.store, stacks), self.base.model.with_experts(stacks)
        refs = self._written(plan)
        try:
            stacks = read_merged(self.base, plan, refs, self.store)
        except BlobError:  # one that an earlier build left was damaged, is dropped now, and is merged again
            refs = self._written(plan)
            stacks = read_merged(self.base, plan, refs, self.store)
        return refs, self.base.model.with_experts(stacks)

    def _written(self, plan: MergePlan) -> list[BlobRef]:
        refs = write_merged(self.base, self.aligned, plan, self.store, self._built)
        self.aligned.save()
        self._built.save(self.store)
        return refs

    def _measured(self, model: MoeModel) -> Measured:
        items = self._of_each(self.settings.measured_items)
        return measure(model, self.base.tokenizer, items, self.scorers, self.calibration.max_answer_tokens)

    def _recovered(self, model: MoeModel, mix: Mapping[str, float], steps: int) -> MoeModel:
        wanted = {task_type: self._examples_of(task_type) for task_type, share in mix.items() if share > 0}
        recovered, _ = recover(model, self.base.model, wanted, mix, replace(self.settings.recovery, steps=steps))
        return recovered

    def _examples_of(self, task_type: str) -> list[Example]:
        if task_type not in self._examples:
            self._examples[task_type] = examples(self.base.tokenizer, self.base.model.shape, self._items[task_type])
        return self._examples[task_type]

    def _check_prompts(self, model: MoeModel, measured: Measured) -> tuple[CheckPrompt, ...]:
        """Prompts with this model's own answers, each run alone as a worker runs them; answers that are right are the surest to repeat."""
        answers = [answer for of_type in measured.answers.values() for answer in of_type]
        surest = sorted(answers, key=lambda answer: (-answer.score, answer.item.task_type, answer.item.item_id))
        prompts = [answer.item.prompt for answer in surest[: self.settings.num_check_prompts]]
        ids = [greedy(model, [self.base.tokenizer.encode(prompt)], self.calibration.max_answer_tokens)[0] for prompt in prompts]
        return tuple(CheckPrompt(prompt, self.base.tokenizer.decode(tokens)) for prompt, tokens in zip(prompts, ids, strict=True))

    def _keep(self, manifest: ModelManifest, plan: MergePlan) -> None:
        write_atomically(self._path("plans", manifest.version, "json"), json.dumps(asdict(plan)).encode())
        write_atomically(self._path("manifests", manifest.version, "pb"), manifest.to_proto().SerializeToString(deterministic=True))
        self.store.pin("latest", manifest.digests)
        self._drop_above_limit()

    def _drop_above_limit(self) -> None:
        """A manifest goes with the first of its blobs. Plans stay for edges that serve their version still: updates to it are small."""
        dropped = set(self.store.evict())
        if not dropped:
            return
        for path in (self.cache_dir / "manifests").glob("*.pb"):
            manifest = self.manifest(path.stem)
            if manifest is None or dropped.intersection(manifest.digests):
                path.unlink(missing_ok=True)
        plans = sorted((self.cache_dir / "plans").glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in plans[:-MAX_PLANS]:
            path.unlink(missing_ok=True)

    def _plan_of(self, version: str) -> MergePlan | None:
        """The plan of a version built before; none where the cache no longer has it, which only costs a larger update."""
        try:
            told = json.loads(self._path("plans", version, "json").read_bytes())
        except OSError:
            return None
        layers = tuple(
            LayerPlan(
                tuple(map(tuple, layer["groups"])),
                tuple(map(tuple, layer["coefficients"])),
                tuple(ExpertForm(**form) for form in layer.get("forms", ())),
            )
            for layer in told["layers"]
        )
        plan = MergePlan(told["base"], told["method"], layers, told["recovery_steps"])
        return plan if plan.base == self.base.base_id else None

    def _path(self, kind: str, version: str, suffix: str) -> Path:
        if not _VERSION.fullmatch(version):
            raise BlobError(f"version {version[:80]!r}: a version is 16 hexadecimal digits")
        return self.cache_dir / kind / f"{version}.{suffix}"


def _shuffled(items: Sequence[TaskItem]) -> list[TaskItem]:
    """The same order on every machine, unrelated to the order of the file."""
    return sorted(items, key=lambda item: (blake3.blake3(item.item_id.encode()).digest(), item.item_id))
