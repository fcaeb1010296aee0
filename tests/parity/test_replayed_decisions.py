"""What an engine decided in a live run, a fresh one decides again from the recorded calls; a record that was changed is found out."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from typing import Any

import numpy as np
import pytest

from loadgen.parity import RecordingError, main, replayed
from services.core.merging.engine import MergeEngine
from services.core.offload.engine import OffloadEngine, offload_engine
from services.runtime.clock import SystemClock
from services.runtime.recording import CALLS, MERGE, OFFLOAD, Recording
from tests.builders import make_edge, make_task
from tests.unit.pico_stack import answered, running_stack

MADE_OF: Any = {"policy_name": "onto", "quality_scale": 1.0, "policy_options": {"ties": "random"}}
TASKS = 120
# An update as soon as the router was seen: the versions are for one task type, the tasks are of the other.
LIVE: dict[str, Any] = {
    "trigger": "jtom",
    "initial_mix": {"right": 1.0},
    "worker": {"report_interval_s": 0.2},
    "controller": {"interval_s": 0.5, "adjustment_s": 0.0, "min_tokens": 20, "min_gain": 0.0, "confirm": False},
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Of a live run: bursts of tasks at once, before, while and after an edge takes another version."""
    folder = tmp_path_factory.mktemp("recorded")
    files = {kind: folder / f"{kind}.jsonl" for kind in (OFFLOAD, MERGE)}
    given = {**LIVE, "broker": {"record": files[OFFLOAD]}, "controller": {**LIVE["controller"], "record": files[MERGE]}}

    async def live():
        async with asyncio.timeout(60.0), running_stack(folder, **given) as (stack, users):
            for burst in range(TASKS // 10):
                for spread in (0.0, 0.01):
                    sent = [_later(spread * n, users, f"w{burst} w{n} w{5 + n}", n) for n in range(5)]
                    await asyncio.gather(*sent)
                while burst == 2 and not any(edge.updates for edge in stack.controller.status()):
                    await answered(users, "w1 w2 w3", task_type="left")

    asyncio.run(live())
    return files


async def _later(after_s, users, prompt, n):
    await SystemClock().sleep(after_s)
    await answered(users, prompt, task_type="left", alpha=0.1 + 0.18 * n, region=("west", "centre")[n % 2])


def changed(source, target, change):
    """The recording with each line as `change` makes it; None drops it."""
    lines = [change(json.loads(text)) for text in source.read_text().splitlines()]
    target.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))
    return target


def test_a_fresh_engine_decides_every_task_of_a_live_run_as_the_live_one_did(recordings):
    parity = replayed(recordings[OFFLOAD])
    assert [str(found) for found in parity.differences] == []
    assert parity.num_calls["decide"] >= TASKS
    assert parity.num_calls["finished"] == parity.num_calls["decide"]
    decided = [json.loads(line) for line in recordings[OFFLOAD].read_text().splitlines() if '"call":"decide"' in line]
    candidates = [candidate for line in decided for candidate in line["answer"]["candidates"]]
    served = {(candidate["edge_id"], candidate["version"]) for candidate in candidates}
    assert len(served) > len({edge_id for edge_id, _ in served}), "no update in between"
    assert any(candidate["queue_wait_s"] > 0 for candidate in candidates), "no task had to wait"
    assert len({line["answer"]["chosen"][0] for line in decided}) == 2


def test_a_fresh_merge_engine_asks_for_the_updates_that_the_live_one_asked_for(recordings):
    parity = replayed(recordings[MERGE])
    assert [str(found) for found in parity.differences] == []
    asked = [json.loads(line) for line in recordings[MERGE].read_text().splitlines() if '"call":"check"' in line]
    assert any(line["answer"] for line in asked), "no update was asked for"
    assert parity.num_calls["observe"] > 0


def test_another_quality_is_named_with_its_task(recordings, tmp_path):
    def other_quality(line):
        for edge in line.get("members", []):
            edge["quality"] = {task_type: 0.9 for task_type in edge["quality"]} if edge["edge_id"] == "small" else edge["quality"]
        return line

    found = replayed(changed(recordings[OFFLOAD], tmp_path / "changed.jsonl", other_quality)).differences
    first = next(difference for difference in found if re.fullmatch(r"candidates\[\d\]\.quality", difference.path))
    assert (first.call, first.recorded, first.replayed) == ("decide", 0.0, 0.9)
    assert f"line {first.line}: decide {first.subject}: {first.path} was 0.0, is 0.9" == str(first)


def test_a_finish_that_is_missing_is_seen_in_the_waits_predicted_after_it(recordings, tmp_path):
    dropped: list[str] = []

    def without_first_end(line):
        """Neither the finish nor the withdrawal that tidies up after it."""
        if line.get("call") in ("finished", "withdrawn") and line["given"]["task_id"]["value"] in dropped[:1]:
            return None
        if line.get("call") == "finished" and not dropped:
            dropped.append(line["given"]["task_id"]["value"])
            return None
        return line

    found = replayed(changed(recordings[OFFLOAD], tmp_path / "changed.jsonl", without_first_end)).differences
    assert dropped
    assert any("outstanding" in difference.path or "queue_wait_s" in difference.path for difference in found)


def test_another_count_of_activations_is_seen_in_what_the_merge_engine_asks_for(recordings, tmp_path):
    def turned(line):
        if line.get("call") == "observe":
            counts = line["given"]["window"]["value"]["counts"]
            line["given"]["window"]["value"]["counts"] = [row[::-1] for row in counts]
        return line

    found = replayed(changed(recordings[MERGE], tmp_path / "changed.jsonl", turned)).differences
    assert {difference.call for difference in found} == {"check"}
    assert any("shift" in difference.path or "frequencies" in difference.path for difference in found)


def test_the_command_prints_differences_and_says_so_with_its_status(recordings, tmp_path, capsys):
    assert main([str(path) for path in recordings.values()]) == 0
    assert "offload engine" in (told := capsys.readouterr().out)
    assert "merge engine" in told
    wrong = changed(recordings[OFFLOAD], tmp_path / "changed.jsonl", lambda line: {**line, "answer": 1.0} if "answer" in line else line)
    assert main([str(wrong)]) == 1
    assert "is None" in capsys.readouterr().out


def test_what_is_no_recording_is_refused_with_its_line(recordings, tmp_path):
    (tmp_path / "other.jsonl").write_text('{"task_id": "t"}\n')
    with pytest.raises(RecordingError, match="line 1: not the head"):
        replayed(tmp_path / "other.jsonl")
    whole = recordings[OFFLOAD].read_text()
    (tmp_path / "cut.jsonl").write_text(whole[: len(whole) // 2])
    with pytest.raises(RecordingError, match=r"line \d+: not JSON"):
        replayed(tmp_path / "cut.jsonl")


def test_a_recording_that_is_full_ends_with_a_whole_line_and_the_engine_goes_on(tmp_path, caplog):
    recording = Recording(tmp_path / "full.jsonl", 20_000, OFFLOAD, {**MADE_OF, "seed": 0})
    engine = recording.around(offload_engine(**MADE_OF, rng=np.random.default_rng(0)))
    edges = (make_edge("a"), make_edge("b"))
    for n in range(60):
        engine.decide(make_task(f"task-{n}"), edges, float(n))
        engine.withdrawn(f"task-{n}", n + 0.5)
    recording.close()
    assert "is full" in caplog.text
    assert 10_000 < (tmp_path / "full.jsonl").stat().st_size <= 20_000
    parity = replayed(tmp_path / "full.jsonl")
    assert parity.differences == []
    assert 0 < parity.num_calls["decide"] < 60


@pytest.mark.parametrize(("kind", "engine"), [(OFFLOAD, OffloadEngine), (MERGE, MergeEngine)])
def test_every_call_that_changes_an_engine_is_recorded(kind, engine):
    """A method that is neither recorded nor known to change nothing would slip through."""
    reads = {"outstanding", "dump", "decision", "deployed_mix", "deployed_version", "due_at_s", "interval_s", "num_failures", "num_tasks"}
    methods = {name for name, value in vars(engine).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert methods - reads - {"pending"} == set(CALLS[kind])
