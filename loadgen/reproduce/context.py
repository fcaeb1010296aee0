"""What an experiment is run with: seeds, the size asked for, and `map`, which computes what was not computed yet and remembers it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context, parent_process
from signal import SIG_IGN, SIGINT, signal
from types import TracebackType
from typing import Any, Self, TypeVar

from loadgen.reproduce.store import Store, keys_of
from services.runtime.plain import to_plain

Given = TypeVar("Given")
Key = TypeVar("Key")
Tell = Callable[[int, int, float | None], None]  # runs done, of how many, seconds that the others may take


class Context:
    """`seeds`: for comparisons, paired. `quick`: a small version of everything, for tests. A context manager, for its processes."""

    def __init__(self, store: Store, tell: Tell, *, num_seeds: int = 10, jobs: int = 1, quick: bool = False) -> None:
        self.seeds = tuple(range(num_seeds))
        self.quick = quick
        self.computed = 0  # runs that no store had
        self._store, self._tell, self._jobs = store, tell, jobs
        self._pool: ProcessPoolExecutor | None = None

    @property
    def few_seeds(self) -> tuple[int, ...]:
        """Half of them: for sweeps, whose claims are about all points together."""
        return self.seeds[: max(2, len(self.seeds) // 2)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Given], Any], inputs: Sequence[Given]) -> list[Any]:
        """`function` of each input, in the order of the inputs; each as its JSON reads (tuples are lists, keys strings).

        `function` stands at the top of a module and depends on nothing but its input, which is plain JSON or a dataclass of such. Each
        result is on disk as soon as it is there, under a key of the input and the code: what is there already is not computed again.
        """
        keys = keys_of(function, inputs)
        missing = {key: given for key, given in zip(keys, inputs, strict=True) if key not in self._store}
        total, began_s = len(missing), time.monotonic()
        for done, (key, result) in enumerate(self._results(function, missing), 1):
            self._store.put(key, {"function": function.__qualname__, "input": to_plain(missing[key])}, result)
            self.computed += 1
            self._tell(done, total, (time.monotonic() - began_s) / done * (total - done))
        return [self._store[key] for key in keys]

    def grouped(self, function: Callable[[Given], Any], wanted: Mapping[Key, Sequence[Given]]) -> dict[Key, list[Any]]:
        """`map` over groups of inputs: an arm's seeds, say."""
        results = iter(self.map(function, [given for group in wanted.values() for given in group]))
        return {key: [next(results) for _ in group] for key, group in wanted.items()}

    def _results(self, function: Callable[[Given], Any], missing: dict[str, Given]) -> Any:
        if missing:
            self._tell(0, len(missing), None)
        if self._jobs < 2 or len(missing) < 2:
            yield from ((key, function(given)) for key, given in missing.items())
            return
        if self._pool is None:
            # Not forked: a process that has threads (of numpy's, say) does not fork well.
            self._pool = ProcessPoolExecutor(self._jobs, get_context("spawn"), initializer=_begin)
        running: dict[Future[Any], str] = {self._pool.submit(function, given): key for key, given in missing.items()}
        while running:
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), future.result()


def _begin() -> None:
    """Of a worker: Ctrl-C is for the parent, which ends the others; a parent that was killed ends nobody, so each looks for itself."""
    signal(SIGINT, SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
