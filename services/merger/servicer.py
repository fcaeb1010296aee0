"""The merger's gRPC face: builds with progress, manifests, blobs in chunks, profiles."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.core.merging.errors import MergingError
from services.merger.builds import BuildPhase, Builds
from services.merger.metrics import MergerMetrics
from services.merger.requests import RequestReader, failure_of_plan
from services.model.build import Builder
from services.model.checkpoint import BaseModel
from services.model.errors import BlobError
from services.model.manifest import ModelManifest, profile_to_proto
from services.model.memory import budget_for
from services.runtime.edges import ModelBytes
from services.runtime.status import guarded, invalid_field, not_found

CHUNK_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What a ready merger serves with. `disk` is for reads, so that they never wait for a build."""

    builder: Builder
    builds: Builds
    requests: RequestReader
    disk: Executor
    metrics: MergerMetrics


class MergerServicer(merger_pb2_grpc.MergerServiceServicer):
    """`ready` raises UNAVAILABLE while the merger starts."""

    def __init__(self, ready: Callable[[], Parts]) -> None:
        self._ready = ready

    @guarded
    async def BuildModel(self, request: merger_pb2.BuildModelRequest, context: Any) -> AsyncIterator[merger_pb2.BuildModelResponse]:
        parts = self._ready()
        wanted = parts.requests.read(request)
        try:
            async with aclosing(parts.builds.build(wanted)) as events:
                async for event in events:
                    if isinstance(event, BuildPhase):
                        progress = merger_pb2.BuildProgress(phase=event.phase, fraction=event.fraction)
                        yield merger_pb2.BuildModelResponse(progress=progress)
                    else:
                        yield merger_pb2.BuildModelResponse(manifest=event.to_proto())
        except MergingError as error:
            raise failure_of_plan(error) from error

    @guarded
    async def GetManifest(self, request: merger_pb2.GetManifestRequest, context: Any) -> merger_pb2.GetManifestResponse:
        parts = self._ready()
        manifest = await _aside(parts, _manifest, parts.builder, request.version)
        if manifest is None:
            raise not_found("version", request.version)
        return merger_pb2.GetManifestResponse(manifest=manifest.to_proto())

    @guarded
    async def FetchBlob(self, request: merger_pb2.FetchBlobRequest, context: Any) -> AsyncIterator[merger_pb2.FetchBlobResponse]:
        """Chunks to the end of the blob; one at its end already gets none."""
        parts = self._ready()
        offset = request.offset
        try:
            size_bytes = await _aside(parts, parts.builder.store.size_bytes, request.digest)
            if offset > size_bytes > 0:
                raise invalid_field("offset", f"{offset} is beyond the blob's {size_bytes} bytes")
            while data := await _aside(parts, parts.builder.store.read_chunk, request.digest, offset, CHUNK_BYTES):
                yield merger_pb2.FetchBlobResponse(offset=offset, data=data, crc32=zlib.crc32(data))
                offset += len(data)
                parts.metrics.sent(len(data))
        except BlobError as error:
            raise not_found("digest", request.digest) from error

    @guarded
    async def GetProfiles(self, request: merger_pb2.GetProfilesRequest, context: Any) -> merger_pb2.GetProfilesResponse:
        parts = self._ready()
        parts.requests.check_base(request.base_model)
        calibration = parts.builder.calibration
        answer = merger_pb2.GetProfilesResponse(
            base_model=parts.builder.base.base_id,
            quality=dict(calibration.quality),
            output_tokens=dict(calibration.output_tokens),
            model_bytes=_bytes_to_proto(weights_of(parts.builder.base)),
        )
        for task_type, profile in sorted(calibration.task_profiles().items()):
            answer.profiles[task_type].CopyFrom(profile_to_proto(profile))
            words = merger_pb2.PromptWords(counts=dict(calibration.prompt_words[task_type]), num_prompts=calibration.num_prompts[task_type])
            answer.prompt_words[task_type].CopyFrom(words)
        return answer


def weights_of(base: BaseModel) -> ModelBytes:
    """What the unmerged model weighs in the dtype that is served."""
    return ModelBytes(
        full=base.full_bytes,
        non_expert=budget_for(base.model, base.full_bytes).non_expert_bytes,
        num_experts=sum(layer.num_experts for layer in base.model.shape.layers),
    )


def _bytes_to_proto(sizes: ModelBytes) -> merger_pb2.ModelBytes:
    return merger_pb2.ModelBytes(full=sizes.full, non_expert=sizes.non_expert, num_experts=sizes.num_experts)


def _manifest(builder: Builder, version: str) -> ModelManifest | None:
    """None for what was never built and for what cannot be a version."""
    try:
        return builder.manifest(version)
    except BlobError:
        return None


async def _aside(parts: Parts, call: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(parts.disk, call, *arguments)
