"""Makes a version in the blob store into a model that may serve: read on a thread of its own, checked against its manifest's answers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

import torch

from services.model.blob_store import BlobStore
from services.model.device import beside
from services.model.errors import BlobError, PromptError
from services.model.expert_store import ServedModel, read_experts, read_model
from services.model.families.base import MoeModel
from services.model.greedy import greedy
from services.model.manifest import ModelManifest
from services.model.tokenizer import Tokenizer
from services.runtime.failpoints import NO_FAILPOINT, Failpoint

ResultT = TypeVar("ResultT")

FREE_EVERY_S = 0.03  # about a step: none gets much of it
SPARE_TOKENS = 4  # a text may have been written with more tokens than it is read as: twice as many, and these


class Loader:
    def __init__(
        self,
        store: BlobStore,
        executor: Executor,
        device: torch.device,
        max_prompt_tokens: int | None,
        failpoint: Failpoint = NO_FAILPOINT,
    ) -> None:
        self._store = store
        self._failpoint = failpoint
        self._executor = executor
        self._device = device
        self._max_prompt_tokens = max_prompt_tokens

    async def whole(self, manifest: ModelManifest) -> ServedModel:
        """The version from its blobs alone, checked. `BlobError` when it may not serve."""
        return await self._aside(self._whole, manifest)

    async def beside(self, manifest: ModelManifest, present: MoeModel, present_manifest: ModelManifest, tokenizer: Tokenizer) -> MoeModel:
        """The version as other experts in the model that serves now: only changed groups are read. `BlobError` when it may not serve."""
        return await self._aside(self._beside, manifest, present, present_manifest, tokenizer)

    def _whole(self, manifest: ModelManifest) -> ServedModel:
        with beside(self._device):
            served = read_model(self._store, manifest, self._device, self._max_prompt_tokens, to_serve=True)
            check_answers(served.model, served.tokenizer, manifest)
        return served

    def _beside(self, manifest: ModelManifest, present: MoeModel, present_manifest: ModelManifest, tokenizer: Tokenizer) -> MoeModel:
        self._failpoint.reached("load")
        with beside(self._device):
            model = present.with_experts(read_experts(self._store, manifest, present, present_manifest))
            self._failpoint.reached("canary")
            check_answers(model, tokenizer, manifest)
        return model

    async def _aside(self, call: Callable[..., ResultT], *arguments: Any) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)


def check_answers(model: MoeModel, tokenizer: Tokenizer, manifest: ModelManifest) -> None:
    """The manifest says what this very version answers to a few prompts (it may have been cut at a token limit): so must this model."""
    for check in manifest.check_prompts:
        try:
            prompt_ids = tokenizer.encode(check.prompt)
        except PromptError as error:
            raise BlobError(f"version {manifest.version}: its check prompt cannot be read ({error})") from error
        num_tokens = SPARE_TOKENS + (2 * len(tokenizer.encode(check.text)) if check.text.strip() else 0)
        told = greedy(model, [prompt_ids], num_tokens, enough=lambda ids: tokenizer.decode(ids).startswith(check.text))  # noqa: B023
        text = tokenizer.decode(told[0])
        if not text.startswith(check.text):
            raise BlobError(f"version {manifest.version}: answers {text[:40]!r} to a check prompt, its manifest says {check.text[:40]!r}")


def changed_bytes(manifest: ModelManifest, present: ModelManifest) -> int:
    """Memory that loading `manifest` beside `present` takes: every layer whose groups differ, the whole model where the rest differs."""
    if manifest.rest.digest != present.rest.digest:
        return manifest.model_bytes
    layers = range(len(manifest.index_maps))
    return sum(blob.size_bytes for n in layers if not _equal_layer(manifest, present, n) for blob in manifest.group_blobs(n))


def _equal_layer(manifest: ModelManifest, present: ModelManifest, layer: int) -> bool:
    if manifest.index_maps[layer] != present.index_maps[layer]:
        return False
    return [blob.digest for blob in manifest.group_blobs(layer)] == [blob.digest for blob in present.group_blobs(layer)]


def free(models: list[MoeModel]) -> None:
    """Empty the list, one layer's experts after the other with pauses: the interpreter is locked while memory is given back."""
    stacks = [stack for model in models for stack in model.experts]
    models.clear()
    pause = threading.Event()
    while stacks:
        stacks.pop()
        pause.wait(FREE_EVERY_S)
