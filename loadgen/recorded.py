"""A replay in files: `run.json` beside the records has everything else that the run showed. Reads back what a replay with `--out` wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loadgen.results import Finished, MergeRules, ReplayResult
from services.controller.settings import ControllerSettings
from services.runtime.errors import RuntimeFault
from services.runtime.plain import from_plain, to_plain
from services.worker.settings import WorkerSettings

FORMAT = 1
RECORDS, RUN = "records.jsonl", "run.json"


class RecordedRunError(RuntimeFault):
    """A folder that holds no whole run; the message names the file and the cure."""


def merge_rules(stack_settings: Mapping[str, Any]) -> MergeRules:
    """What controller and workers of a stack with these settings go by; what is not among them comes from the environment, as there."""
    given = {name: stack_settings[name] for name in ("trigger", "quality_scale") if name in stack_settings}
    controller = ControllerSettings.load(**given | dict(stack_settings.get("controller", {})), merger_address="not-asked:0")
    worker = WorkerSettings.load(**dict(stack_settings.get("worker", {})))
    return MergeRules(
        controller.trigger,
        controller.trigger_options,
        controller.min_gain,
        controller.cool_down_s,
        worker.report_tasks,
        worker.report_interval_s,
    )


def write_run(directory: Path, result: ReplayResult) -> None:
    """Beside `RECORDS`, which the replay wrote task by task."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {"format": FORMAT, "result": to_plain(replace(result, finished=()))}
    (directory / RUN).write_text(json.dumps(document) + "\n", encoding="utf-8")


def read_run(directory: Path) -> ReplayResult:
    """Tasks by intended send, as the replay returned them."""
    path = directory / RUN
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("format") != FORMAT:
            raise RecordedRunError(f"{path}: not a run of format {FORMAT}; replay again with --out")
        result: ReplayResult = from_plain(ReplayResult, document["result"])
        path = directory / RECORDS
        with path.open(encoding="utf-8") as lines:
            finished = [from_plain(Finished, json.loads(line)) for line in lines]
    except OSError as error:
        raise RecordedRunError(f"{path}: {error.strerror or error}; give a folder that moedge replay --out wrote") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RecordedRunError(f"{path}: {error!r} is missing or broken; replay again with --out") from error
    return replace(result, finished=tuple(sorted(finished, key=lambda record: (record.intended_at_s, record.task_id))))
