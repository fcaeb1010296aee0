"""An edge's state as bytes and back: JSON, self-contained, with instants as distances from now, since clocks do not survive a process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.core.merging.errors import CountsError, StateError
from services.core.merging.triggers import Deployed, TriggerState
from services.core.merging.values import ActivationWindow
from services.core.merging.windows import CountWindow

FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class EdgeState:
    """What the engine holds of one edge. `asked`: the counts that an open request rests on, `asked_mix`: what it asks for."""

    trigger: TriggerState
    window: CountWindow
    asked: CountWindow | None = None
    failures: int = 0
    asked_mix: Mapping[str, float] | None = None


def state_bytes(edge: EdgeState, trigger_name: str, now_s: float) -> bytes:
    state, model = edge.trigger, edge.trigger.deployed
    window = edge.asked.joined(edge.window) if edge.asked is not None else edge.window
    document = {
        "format": FORMAT,
        "trigger": trigger_name,
        "version": model.version,
        "reference": model.reference.tolist(),
        "profiles": {t: profile.tolist() for t, profile in sorted(model.profiles.items())},
        "mix": dict(sorted(model.mix.items())),
        "quality": dict(sorted(model.quality.items())),
        "memory": state.memory,
        "interval_s": state.interval_s,
        "due_in_s": 0.0 if edge.asked is not None else state.due_at_s - now_s,
        "suspected": state.suspected,
        "failures": edge.failures,
        "reports": [
            {
                "num_tasks": r.num_tasks,
                "counts": r.counts.tolist(),
                "age_s": now_s - r.end_at_s,
                "length_s": r.end_at_s - r.start_at_s,
                "tasks_by_region": dict(r.tasks_by_region),
            }
            for r in window.reports
        ],
    }
    return json.dumps(document, separators=(",", ":")).encode()


def read_state(edge_id: str, data: bytes, now_s: float) -> tuple[EdgeState, str]:
    """The state and the name of the trigger it was saved by."""
    try:
        document = json.loads(data)
        if document["format"] != FORMAT:
            raise StateError(f"saved state of {edge_id} has format {document['format']}, this is {FORMAT}")
        return _edge_state(edge_id, document, now_s), str(document["trigger"])
    except (ValueError, KeyError, TypeError, CountsError) as error:
        raise StateError(f"saved state of {edge_id} cannot be read: {error!r}") from error


def _edge_state(edge_id: str, document: dict[str, Any], now_s: float) -> EdgeState:
    reference = _matrix(document["reference"])
    profiles = {str(t): _matrix(profile) for t, profile in document["profiles"].items()}
    if any(p.shape != reference.shape for p in profiles.values()):
        raise StateError(f"saved state of {edge_id} has profiles and frequencies of different shapes")
    mix, quality = _shares(document["mix"]), _shares(document.get("quality", {}))
    model = Deployed(str(document["version"]), reference, profiles, mix, quality)
    window = CountWindow(model.shape)
    for report in document["reports"]:
        end_at_s = now_s - float(report["age_s"])
        counts = np.asarray(report["counts"], dtype=np.int64)
        start_at_s = end_at_s - float(report["length_s"])
        regions = {str(region): int(num) for region, num in report.get("tasks_by_region", {}).items()}
        window = window.added(ActivationWindow(edge_id, model.version, counts, int(report["num_tasks"]), start_at_s, end_at_s, regions))
    memory = tuple(tuple(float(value) for value in row) for row in document.get("memory", ()))
    due_at_s = now_s + float(document["due_in_s"])
    state = TriggerState(model, float(document["interval_s"]), due_at_s, bool(document["suspected"]), memory)
    return EdgeState(state, window, None, int(document["failures"]))


def _shares(values: Mapping[str, float]) -> dict[str, float]:
    return {str(t): float(value) for t, value in values.items()}


def _matrix(rows: object) -> NDArray[np.float64]:
    matrix = np.asarray(rows, dtype=np.float64)
    if matrix.ndim != 2:
        raise StateError(f"expected a matrix, found {matrix.ndim} dimensions")
    return matrix
