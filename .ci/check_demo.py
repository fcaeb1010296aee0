"""Holds `report.json` of the demonstration to its acceptance figures, each printed; the report's own verdicts are not taken on trust."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MIN_TASKS = 600
QUALITY_GAIN = 1.15
RUN_KEYS = (
    "tasks",
    "positive_cost",
    "weighted_cost",
    "process_time_s",
    "total_quality",
    "updates",
    "swap",
    "latency_s",
    "wait_prediction_error_s",
)


def findings(directory: Path) -> Iterator[tuple[bool, str]]:
    report: dict[str, Any] = json.loads((directory / "report.json").read_text())
    runs = report["runs"]
    for name in ("portfolio", "jtom", "static"):
        missing = [key for key in RUN_KEYS if key not in runs[name]]
        yield not missing, f"{name}: every figure is there" + (f", but not {missing}" if missing else "")
        tasks = runs[name]["tasks"]
        yield tasks["sent"] >= MIN_TASKS, f"{name}: {tasks['sent']} tasks sent (at least {MIN_TASKS})"
        yield tasks["completed"] == tasks["sent"], f"{name}: {tasks['completed']} of {tasks['sent']} completed"
    static = runs["static"]
    for name in ("portfolio", "jtom"):
        yield from updating(name, runs[name], static)
    print(f"portfolio against jtom: positive cost {runs['portfolio']['positive_cost'] / runs['jtom']['positive_cost'] - 1:+.1%}")
    drifts = report["drifts_at_s"]
    yield len(drifts) >= 2, f"drifts at {drifts} s (at least two)"
    spare = runs["jtom"]["updates_without_reason"]
    yield spare <= 1, f"jtom: {spare} updates without reason (at most one)"
    yield static["updates"] == 0, f"{static['updates']} updates in the run without them"
    page = directory / "report.html"
    yield page.is_file() and page.stat().st_size > 10_000, f"{page} is there"
    yield bool(report.get("unmerged_quantised")), "says what the unmerged model quantised to the same bytes would score"
    print("also: verdicts not ok in the report:", [v["name"] for v in report["verdicts"] if not v["ok"]] or "none")


def updating(name: str, run: dict[str, Any], static: dict[str, Any]) -> Iterator[tuple[bool, str]]:
    gain = run["total_quality"]["realised"] / static["total_quality"]["realised"]
    yield gain >= QUALITY_GAIN, f"{name}: realised quality {gain:.3f} times that without updates (at least {QUALITY_GAIN})"
    yield (
        run["positive_cost"] < static["positive_cost"],
        f"{name}: positive cost {run['positive_cost']:.3f} against {static['positive_cost']:.3f}",
    )
    unanswered = run["drifts_without_update_at_s"]
    told = f"{run['updates']} updates; drifts with none after them: {unanswered or 'none'}"
    if name == "jtom":
        yield not unanswered, f"{name}: an update after each drift ({told})"
    else:  # looks at the whole fleet: an edge may know already what others begin to ask for
        yield run["updates"] >= 1, f"{name}: at least one update ({told})"


def main(directory: str) -> int:
    path = Path(directory)
    if not (path / "report.json").is_file():
        print(f"no {path / 'report.json'}: the demonstration did not finish")
        return 1
    results = list(findings(path))
    for ok, text in results:
        print(("ok    " if ok else "FAIL  ") + text)
    return 0 if all(ok for ok, _ in results) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
