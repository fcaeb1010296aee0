"""What a model version is: its blobs, its index maps, its quality and f', and how it was made. A value; protobuf is its written form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moedge.v1 import merger_pb2
from services.core.merging.values import Frequencies, normalised

GROUP = "group"  # the experts of one group, merged
PACKED = "packed"  # one original expert, packed (records.py)
REST = "rest"  # everything else of the model, with config and tokenizer


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A blob and, where it holds a group, which group of which layer."""

    digest: str
    size_bytes: int
    kind: str
    layer: int = 0
    group: int = 0


@dataclass(frozen=True, slots=True)
class TaskProfile:
    """f' of one task type: frequencies by layer, and how many tokens a mean task sends through each layer (top_k counted)."""

    frequencies: Frequencies
    tokens_per_task: NDArray[np.float64]  # (num_layers,)

    @property
    def counts_per_task(self) -> NDArray[np.float64]:
        return self.frequencies * self.tokens_per_task[:, None]


@dataclass(frozen=True, slots=True)
class CheckPrompt:
    """A prompt with this very version's own answer: what a worker compares before it switches."""

    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """One model version. `quality` and `frequencies` were measured on the merged model, with calibration items."""

    version: str
    base_model: str
    plan_id: str
    method: str
    mix: Mapping[str, float]
    dtype: str
    budget_bytes: int
    model_bytes: int
    full_model_bytes: int
    experts_kept: int
    experts_total: int
    blobs: tuple[BlobRef, ...]
    index_maps: tuple[tuple[int, ...], ...]
    frequencies: Frequencies  # for the mix it was built for
    quality: Mapping[str, float]
    quality_before_recovery: Mapping[str, float]
    profiles: Mapping[str, TaskProfile]
    check_prompts: tuple[CheckPrompt, ...]
    durations_s: Mapping[str, float]
    config_json: str

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(blob.digest for blob in self.blobs)

    @property
    def rest(self) -> BlobRef:
        return next(blob for blob in self.blobs if blob.kind == REST)

    def group_blobs(self, layer: int) -> list[BlobRef]:
        """Blobs of a layer in the order of its groups."""
        found = [blob for blob in self.blobs if blob.kind in (GROUP, PACKED) and blob.layer == layer]
        return sorted(found, key=lambda blob: blob.group)

    def to_proto(self) -> merger_pb2.Manifest:
        written = merger_pb2.Manifest(
            version=self.version,
            base_model=self.base_model,
            plan_id=self.plan_id,
            method=self.method,
            mix=dict(self.mix),
            budget_bytes=self.budget_bytes,
            model_bytes=self.model_bytes,
            full_model_bytes=self.full_model_bytes,
            experts_kept=self.experts_kept,
            experts_total=self.experts_total,
            quality=dict(self.quality),
            quality_before_recovery=dict(self.quality_before_recovery),
            dtype=self.dtype,
            config_json=self.config_json,
        )
        written.blobs.extend(
            merger_pb2.Blob(digest=blob.digest, size_bytes=blob.size_bytes, layer=blob.layer, group=blob.group, kind=blob.kind)
            for blob in self.blobs
        )
        written.layers.extend(
            merger_pb2.Layer(index_map=index_map, frequencies=frequencies.tolist())
            for index_map, frequencies in zip(self.index_maps, self.frequencies, strict=True)
        )
        written.check_prompts.extend(merger_pb2.CheckPrompt(prompt=check.prompt, text=check.text) for check in self.check_prompts)
        for task_type, profile in self.profiles.items():
            written.profiles[task_type].CopyFrom(profile_to_proto(profile))
        for phase, seconds in self.durations_s.items():
            written.durations[phase].FromNanoseconds(round(seconds * 1e9))
        return written

    @classmethod
    def from_proto(cls, written: merger_pb2.Manifest) -> ModelManifest:
        return cls(
            version=written.version,
            base_model=written.base_model,
            plan_id=written.plan_id,
            method=written.method,
            mix=_sorted(written.mix),
            dtype=written.dtype,
            budget_bytes=written.budget_bytes,
            model_bytes=written.model_bytes,
            full_model_bytes=written.full_model_bytes,
            experts_kept=written.experts_kept,
            experts_total=written.experts_total,
            blobs=tuple(BlobRef(blob.digest, blob.size_bytes, blob.kind, blob.layer, blob.group) for blob in written.blobs),
            index_maps=tuple(tuple(layer.index_map) for layer in written.layers),
            frequencies=np.array([layer.frequencies for layer in written.layers], dtype=np.float64),
            quality=_sorted(written.quality),
            quality_before_recovery=_sorted(written.quality_before_recovery),
            profiles={task_type: profile_from_proto(written.profiles[task_type]) for task_type in sorted(written.profiles)},
            check_prompts=tuple(CheckPrompt(check.prompt, check.text) for check in written.check_prompts),
            durations_s={phase: value.ToNanoseconds() / 1e9 for phase, value in sorted(written.durations.items())},
            config_json=written.config_json,
        )


def profile_to_proto(profile: TaskProfile) -> merger_pb2.TaskProfile:
    layers = [merger_pb2.LayerFrequencies(values=row.tolist()) for row in profile.frequencies]
    return merger_pb2.TaskProfile(layers=layers, tokens_per_task=profile.tokens_per_task.tolist())


def profile_from_proto(written: merger_pb2.TaskProfile) -> TaskProfile:
    frequencies = np.array([layer.values for layer in written.layers], dtype=np.float64)
    return TaskProfile(frequencies, np.array(written.tokens_per_task, dtype=np.float64))


def mixed_frequencies(profiles: Mapping[str, TaskProfile], mix: Mapping[str, float]) -> Frequencies:
    """f' of a mix of tasks: counts of a mean task, added by task shares."""
    parts = [share * profiles[task_type].counts_per_task for task_type, share in sorted(mix.items()) if share > 0]
    total: NDArray[np.float64] = np.sum(parts, axis=0)
    return normalised(total)


def _sorted(values: Mapping[str, float]) -> dict[str, float]:
    return {key: values[key] for key in sorted(values)}
