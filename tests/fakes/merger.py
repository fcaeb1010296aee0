"""A merger for tests: real gRPC on the loopback, versions made of a request's text, f' of the profiles it is given, a task type
scored by its share of the mix. No model behind it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import numpy as np
from numpy.typing import NDArray

from moedge.v1 import merger_pb2, merger_pb2_grpc
from services.core.merging.values import normalised
from services.runtime.codec import duration, frequencies_to_rows, profile_to_proto, rows_to_frequencies
from services.runtime.net import bind, server
from services.runtime.status import RpcFailure, guarded, not_found


class FakeMerger(merger_pb2_grpc.MergerServiceServicer):
    """`profiles`: expected counts of one task by task type. `refuse` and `gate` script the next builds."""

    def __init__(self, profiles: Mapping[str, NDArray[np.float64]]) -> None:
        self._profiles = profiles
        self._manifests: dict[str, merger_pb2.Manifest] = {}
        self.requests: list[merger_pb2.BuildModelRequest] = []
        self.num_manifest_calls = 0
        self.refuse: RpcFailure | None = None
        self.gate = asyncio.Event()  # builds wait for it
        self.gate.set()
        self.address = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeMerger]:
        grpc_server = server()
        merger_pb2_grpc.add_MergerServiceServicer_to_server(self, grpc_server)
        self.address = bind(grpc_server, "127.0.0.1", 0)
        await grpc_server.start()
        try:
            yield self
        finally:
            await grpc_server.stop(0)

    def version_for(self, mix: Mapping[str, float], budget_bytes: int = 1_000) -> str:
        """The version that a request for this mix gets, built on the spot."""
        return self._built(merger_pb2.BuildModelRequest(base_model="base-1", mix=dict(mix), budget_bytes=budget_bytes)).version

    @guarded
    async def BuildModel(self, request, context):
        self.requests.append(request)
        yield merger_pb2.BuildModelResponse(progress=merger_pb2.BuildProgress(phase="plan", fraction=0.1))
        await self.gate.wait()
        if self.refuse is not None:
            raise self.refuse
        yield merger_pb2.BuildModelResponse(manifest=self._built(request))

    @guarded
    async def GetManifest(self, request, context):
        self.num_manifest_calls += 1
        if request.version not in self._manifests:
            raise not_found("version", request.version)
        return merger_pb2.GetManifestResponse(manifest=self._manifests[request.version])

    @guarded
    async def GetProfiles(self, request, context):
        return merger_pb2.GetProfilesResponse(base_model=request.base_model, output_tokens=dict.fromkeys(self._profiles, 8.0))

    def _built(self, request: merger_pb2.BuildModelRequest) -> merger_pb2.Manifest:
        mix = {t: share for t, share in sorted(request.mix.items()) if share > 0}
        raw = rows_to_frequencies(request.raw_frequencies) if request.raw_frequencies else None
        text = repr((sorted(mix.items()), request.budget_bytes, None if raw is None else raw.tolist()))
        version = hashlib.sha256(text.encode()).hexdigest()[:12]
        f = normalised(np.sum([share * self._profiles[t] for t, share in mix.items()], axis=0))
        manifest = merger_pb2.Manifest(version=version, base_model=request.base_model, mix=mix, budget_bytes=request.budget_bytes)
        manifest.quality.update({t: mix.get(t, 0.0) for t in self._profiles})
        manifest.layers.extend(merger_pb2.Layer(frequencies=row.values) for row in frequencies_to_rows(f))
        manifest.durations["merge"].CopyFrom(duration(0.1))
        for task_type, counts in self._profiles.items():
            manifest.profiles[task_type].CopyFrom(profile_to_proto(normalised(counts), counts.sum(axis=1).tolist()))
        self._manifests[version] = manifest
        return manifest
