"""The stack as its users see it: one task, a drifting replay in which edges are merged anew, workers that come and go."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.asking import NEAR_SMALL
from tests.harness.compose import REPOSITORY
from tests.harness.faults import Scaled
from tests.harness.history import OK, Fault

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

MOEDGE = Path(sys.executable).with_name("moedge")
QUESTION = "yesterday lipafe gokeva caused which outcome"
REPLAY_RATE_PER_S, REPLAY_S = 7.0, 180.0
FEWEST_TASKS, FEWEST_MERGES = 1000, 2
DRAIN_S = 20.0


async def moedge(*arguments, timeout_s=60.0):
    command = [str(MOEDGE), *arguments, "--json"]
    done = await asyncio.to_thread(subprocess.run, command, cwd=REPOSITORY, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


async def test_one_task_is_answered_through_the_published_port(target):
    answer = await moedge("infer", QUESTION, "--task", "alternative", "--target", target)
    assert answer["text"]
    assert answer["version"]
    assert answer["edge_id"]


async def test_status_shows_every_edge(target, stack):
    status = await moedge("status", "--target", target)
    assert {edge["edge_id"] for edge in status["edges"]} == set(await stack.edges())
    assert all(edge["version"] and edge["state"] == "ready" for edge in status["edges"])


async def test_a_replay_runs_inside_the_network(stack):
    arguments = ("--profile", "load", "run", "--rm", "-T", "load", "replay", "--rate", "4", "--duration", "8", "--json")
    report = json.loads(await asyncio.to_thread(stack.compose, *arguments))
    counts = report["runs"]["replay"]["tasks"]
    assert counts["completed"] == counts["sent"] > 0


# Edges begin with alternative, facts and pronoun, so that none knows what the first two phases ask for. A phase is longer than the longest
# interval between two checks (docker-compose.yml) and one more look.
MIX = f"0:question=4,pronoun=1;{REPLAY_S / 3:.0f}:sentence=4,facts=1;{2 * REPLAY_S / 3:.0f}:alternative=4,pronoun=1"


async def test_a_drifting_replay_of_a_thousand_tasks_swaps_merged_models_in(target, stack, tap, out):
    """Each phase is led by other task types than the one before, so every edge's traffic shifts at the same time."""
    before = {name: edge.version for name, edge in (await stack.edges()).items()}
    await tap.read()
    known = {event.event_id for event in tap.merges}
    rate, duration, folder = str(REPLAY_RATE_PER_S), str(REPLAY_S), out / "replay"
    options = ["--rate", rate, "--duration", duration, "--mix", MIX, "--deadline", "30", "--out", str(folder)]
    await moedge("replay", "--target", target, *options, timeout_s=REPLAY_S + 120.0)
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    assert len(records) >= FEWEST_TASKS
    assert [record for record in records if record["outcome"] != "completed"] == []
    await tap.read()
    swapped = [event for event in tap.merges if event.event_id not in known and event.swap.ok]
    assert len({event.event_id for event in swapped}) >= FEWEST_MERGES
    versions = {(record["edge_id"], record["version"]) for record in records}
    taken = {(event.edge_id, event.version) for event in swapped}
    assert len(versions & taken) >= FEWEST_MERGES  # and they answered tasks
    assert {(edge, version) for edge, version in versions if before.get(edge) == version}  # as the versions before them had


async def test_workers_scale_from_one_to_four_and_back_under_load(scenarios, stack):
    """New ones register themselves and get tasks; leaving ones drain; no task fails."""
    async with scenarios.loaded(
        "scale 1 to 4 to 1", "0 refused, each new edge has tasks", rate_per_s=6.0, deadline_s=30.0, **NEAR_SMALL
    ) as run:
        known = set(await stack.edges())
        scaled = Scaled(stack, "worker-small", 4)
        try:
            await scaled.inject()
            new = set(await stack.whole()) - known
            ready_at_s = run.now_s()
            assert len(new) == 3

            async def each_has_tasks():
                return new <= {call.edge_id for call in run.calls.ended if call.sent_at_s >= ready_at_s}

            await stack.until(each_has_tasks, f"each of {sorted(new)} answers a task", 30.0)
            leaves_at_s = run.now_s()
        finally:
            await scaled.heal()
        run.faults.append(Fault(leaves_at_s, run.now_s() + DRAIN_S, drains=True, name="scale down"))
        assert set(await stack.whole()) == known
        await run.wait(5.0)
    await run.judge(answered=1.0)
    assert run.row.refused == 0
    assert {call.status for call in run.calls.ended} == {OK}
    run.row.met = True
