"""The feasible edges of one decision with their estimates: columns for policies that compute, candidates for people who look."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from services.core.offload.table import Column
from services.core.offload.values import Candidate, EdgeSnapshot, Work


class Columns(Protocol):
    """One row a candidate, by ascending edge id. They may be computed when they are asked for; not to be written to."""

    @property
    def uplink_s(self) -> Column: ...
    @property
    def queue_wait_s(self) -> Column: ...
    @property
    def inference_s(self) -> Column: ...
    @property
    def downlink_s(self) -> Column: ...
    @property
    def quality(self) -> Column: ...
    @property
    def completion_time_s(self) -> Column: ...
    @property
    def cost(self) -> Column: ...
    @property
    def outstanding(self) -> Column: ...  # tasks
    def completion_time_s_of(self, row: int) -> float:
        """Of one row, without the column."""
        ...


@dataclass(frozen=True, slots=True)
class CandidateColumns:
    """Columns that are known already."""

    uplink_s: Column
    queue_wait_s: Column
    inference_s: Column
    downlink_s: Column
    quality: Column
    completion_time_s: Column
    cost: Column
    outstanding: Column

    def kept(self, rows: NDArray[np.intp]) -> CandidateColumns:
        return CandidateColumns(*(getattr(self, field.name)[rows] for field in fields(self)))

    def completion_time_s_of(self, row: int) -> float:
        return float(self.completion_time_s[row])


class CandidateTable(Sequence[Candidate]):
    """By ascending edge id. Candidates are made when they are looked at; a decision among hundreds of edges looks at one."""

    def __init__(self, edges: Sequence[EdgeSnapshot], columns: Columns, output_tokens: float) -> None:
        self.edges = edges
        self.columns = columns
        self.output_tokens = output_tokens

    def __len__(self) -> int:
        return len(self.edges)

    @overload
    def __getitem__(self, index: int) -> Candidate: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Candidate]: ...
    def __getitem__(self, index: int | slice) -> Candidate | Sequence[Candidate]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        edge, columns = self.edges[index], self.columns
        return Candidate(
            edge_id=edge.edge_id,
            version=edge.version,
            uplink_s=float(columns.uplink_s[index]),
            queue_wait_s=float(columns.queue_wait_s[index]),
            inference_s=float(columns.inference_s[index]),
            downlink_s=float(columns.downlink_s[index]),
            output_tokens=self.output_tokens,
            quality=float(columns.quality[index]),
            completion_time_s=float(columns.completion_time_s[index]),
            cost=float(columns.cost[index]),
            outstanding=Work(num_tasks=int(columns.outstanding[index])),
        )

    def named(self, edge_id: str) -> Candidate:
        """Raises `KeyError` where that edge is none."""
        row = bisect_left(self.edges, edge_id, key=_edge_id)
        if row == len(self.edges) or self.edges[row].edge_id != edge_id:
            raise KeyError(edge_id)
        return self[row]

    def __iter__(self) -> Iterator[Candidate]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


def _edge_id(edge: EdgeSnapshot) -> str:
    return edge.edge_id
