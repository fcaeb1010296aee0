"""A merge plan carried out into a blob store, a group at a time: what was merged before is not merged again, and no model is held.

Groups are written and synced while the next ones are computed. What they come to in memory is read back from the blobs, so that what is
measured is what edges get.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import blake3
from torch import Tensor

from services.core.merging.values import MergePlan
from services.model.alignment import Aligned
from services.model.blob_store import BlobStore
from services.model.checkpoint import BaseModel
from services.model.families.base import ExpertStack
from services.model.manifest import GROUP, BlobRef
from services.model.merging import Ingredients, check_layers, index_map, ingredients, is_unmerged, merged_group, new_room
from services.model.tensor_files import write_atomically

_FORMAT = 1  # raise it when the same ingredients would give another expert
_NUM_WRITERS = 2  # one computes its digest while the other's disk writes
_MAX_WAITING = 2  # merged groups that wait to be written, in memory

Blob = tuple[str, int]  # digest, bytes


class BuiltGroups:
    """Which blob holds the expert of given ingredients, from every version that was built of one base model. Kept as one file."""

    def __init__(self, path: Path, base: BaseModel) -> None:
        self._path = path
        self._base = [_FORMAT, base.base_id, base.dtype]
        self._blobs: dict[str, Blob] = _read(path)

    def blob(self, layer: int, group: Ingredients) -> Blob | None:
        return self._blobs.get(self._key(layer, group))

    def add(self, layer: int, group: Ingredients, blob: Blob) -> None:
        self._blobs[self._key(layer, group)] = blob

    def save(self, store: BlobStore) -> None:
        """Write it, without blobs that the store no longer has."""
        self._blobs = {key: blob for key, blob in self._blobs.items() if store.has(blob[0])}
        write_atomically(self._path, json.dumps(self._blobs, sort_keys=True).encode())

    def _key(self, layer: int, group: Ingredients) -> str:
        return blake3.blake3(json.dumps([*self._base, layer, *astuple(group)]).encode()).hexdigest(length=16)


def write_merged(base: BaseModel, aligned: Aligned, plan: MergePlan, store: BlobStore, built: BuiltGroups) -> list[BlobRef]:
    """A blob for every group, in the order of layers and groups; few groups are held at a time, and of the base a layer."""
    check_layers(base, plan)
    refs: list[BlobRef] = []
    with ThreadPoolExecutor(_NUM_WRITERS, "blobs") as threads:
        writing = _Writing(threads, store, built)
        for layer, groups in enumerate(ingredients(plan)):
            stack = base.model.experts[layer]
            for row, group in enumerate(groups):
                held = built.blob(layer, group)
                if held is not None and store.has(held[0]):
                    refs.append(BlobRef(*held, GROUP, layer, row))
                    continue
                room = writing.room(stack)
                writing.put(_Task(layer, row, group, room), merged_group(stack, aligned, layer, group, room))
            stack.release()
        refs += writing.finished()
    return sorted(refs, key=lambda ref: (ref.layer, ref.group))


@dataclass(frozen=True, slots=True)
class _Task:
    layer: int
    row: int
    group: Ingredients
    room: Mapping[str, Tensor]


class _Writing:
    """Merged groups on their way into the store. Memory of what is written is used again: new memory costs as much as merging."""

    def __init__(self, threads: Executor, store: BlobStore, built: BuiltGroups) -> None:
        self._threads = threads
        self._store = store
        self._built = built
        self._waiting: deque[tuple[_Task, Future[Blob]]] = deque()
        self._rooms: list[Mapping[str, Tensor]] = []
        self._refs: list[BlobRef] = []

    def room(self, stack: ExpertStack) -> Mapping[str, Tensor]:
        """For the next merged expert. Waits where too many are still to be written."""
        if len(self._waiting) > _MAX_WAITING:
            self._finish_oldest()
        shapes = {name: weight.shape[1:] for name, weight in stack.weights.items()}
        while self._rooms:
            room = self._rooms.pop()
            if {name: tensor.shape for name, tensor in room.items()} == shapes:
                return room
        return new_room(stack)

    def put(self, task: _Task, expert: Mapping[str, Tensor]) -> None:
        self._waiting.append((task, self._threads.submit(self._store.put, expert)))

    def finished(self) -> list[BlobRef]:
        """All of them, once they are there."""
        while self._waiting:
            self._finish_oldest()
        return self._refs

    def _finish_oldest(self) -> None:
        task, future = self._waiting.popleft()
        blob = future.result()
        self._rooms.append(task.room)
        self._built.add(task.layer, task.group, blob)
        self._refs.append(BlobRef(*blob, GROUP, task.layer, task.row))


def read_merged(base: BaseModel, plan: MergePlan, refs: Sequence[BlobRef], store: BlobStore) -> list[ExpertStack]:
    """The stacks of a plan from its blobs, checked; an unmerged layer is the base's own stack. BlobError where a blob is damaged."""
    stacks = []
    for layer, (stack, layer_plan) in enumerate(zip(base.model.experts, plan.layers, strict=True)):
        if is_unmerged(stack, layer_plan):
            stacks.append(stack)
            continue
        weights = {name: weight.new_empty((len(layer_plan.groups), *weight.shape[1:])) for name, weight in stack.weights.items()}
        for ref in refs:
            if ref.layer == layer:
                for name, weight in store.read(ref.digest).items():
                    weights[name][ref.group] = weight
        stacks.append(ExpertStack(weights, index_map(stack, layer_plan)))
    return stacks


def _read(path: Path) -> dict[str, Blob]:
    """Nothing where the file is absent or not what it should be: groups are then merged again."""
    try:
        return {str(key): (str(digest), int(size_bytes)) for key, (digest, size_bytes) in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
