"""When an edge reads the prompts that wait: reading halts all that it is answering, and much of that is the same for one as for many.

To wait a step longer costs each who waits that step. It saves, of those who are halted, the ones who will be done by then, and the reading
of those who will come. Prompts are read once the first is more (looking one step ahead; Chow, Robbins 1961), and at the latest when
waiting has cost as much as reading will, so that a wrong guess of who comes no more than doubles the cost (as in the TCP acknowledgement
problem; Dooly, Goldman, Scott, J. ACM 2001).
"""

from __future__ import annotations

import math

KEPT = 0.98  # of what was seen, each time that a task begins


class Admission:
    """Of one edge. Asked at step boundaries, at all at which somebody waits; learns from that how soon tasks end and come."""

    __slots__ = ("_at_s", "_begun", "_ended", "_num_held", "_num_running", "_passed_s", "_rate", "_served_s", "_waited_s")

    def __init__(self) -> None:
        self._at_s: float | None = None  # when it was last asked
        self._num_running = 0  # from then on
        self._num_held = 0
        self._waited_s = 0.0  # summed over tasks, since prompts were last read
        self._begun = self._ended = self._passed_s = 0.0
        self._served_s = 0.0  # summed over tasks
        self._rate = 0.0  # ends a second of each that runs, and begins; as of the last reading

    def admits(self, num_admissible: int, num_running: int, prefill_base_s: float, now_s: float) -> bool:
        """Whether tasks that wait and have a slot begin now. `prefill_base_s`: what reading costs however little is read."""
        if prefill_base_s <= 0.0:
            return True
        if self._at_s is not None:
            elapsed_s = now_s - self._at_s
            self._passed_s += elapsed_s
            self._served_s += self._num_running * elapsed_s
            self._waited_s += self._num_held * elapsed_s
            self._ended += self._num_running - num_running
        self._at_s, self._num_running, self._num_held = now_s, num_running, 0
        if num_admissible == 0:
            return True
        halted_s = num_running * prefill_base_s
        if num_admissible < halted_s * self._rate and self._waited_s < halted_s:
            self._num_held = num_admissible
            return False
        self._read(num_admissible)
        return True

    def due_in_s(self, prefill_base_s: float) -> float:
        """How much longer those that were held will be, while nothing changes; infinite where nobody is."""
        return (self._num_running * prefill_base_s - self._waited_s) / self._num_held if self._num_held else math.inf

    def copy(self) -> Admission:
        other = Admission()
        for name in self.__slots__:
            setattr(other, name, getattr(self, name))
        return other

    def _read(self, num_begun: int) -> None:
        self._num_running += num_begun
        self._begun += num_begun
        self._waited_s = 0.0
        if self._served_s > 0.0:
            self._rate = self._ended / self._served_s + self._begun / self._passed_s
        kept = KEPT**num_begun
        self._begun, self._ended, self._passed_s, self._served_s = (
            kept * self._begun,
            kept * self._ended,
            kept * self._passed_s,
            kept * self._served_s,
        )
