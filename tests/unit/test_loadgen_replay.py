"""The open-loop replay against a fake broker over real loopback gRPC: punctual, complete, and honest about failures."""

import asyncio
import json
import threading

import grpc
import numpy as np
import pytest

from loadgen.options import ReplayOptions
from loadgen.pacing import paced
from loadgen.replay import ReplayError, replay
from loadgen.report.numbers import run_numbers
from loadgen.results import Outcome
from loadgen.tally import Progress
from loadgen.view import QuietView
from moedge.v1 import inference_pb2, inference_pb2_grpc, worker_pb2
from services.core.workload.arrivals import poisson
from services.core.workload.load import PlannedTask, User, plan_load
from services.core.workload.mixes import DriftingMix, MixPhase
from services.runtime.clock import SystemClock
from services.runtime.net import channel
from services.runtime.status import RpcFailure, invalid_field, predicted_late, queue_full
from services.tasks.values import TaskItem, TaskSet
from tests.fakes.broker import Answer, FakeBroker, make_listed_edge, serving

ITEMS = TaskSet(
    "two types",
    tuple(TaskItem(t, f"{t}-{n}", f"{t} prompt {n}", ("yes it is",)) for t in ("facts", "question") for n in range(8)),
    {"facts": "exact_match", "question": "f1"},
)


def make_plan(num_tasks=20, every_s=0.01, **overrides):
    types = ("facts", "question")
    return tuple(
        PlannedTask(
            **(
                {
                    "at_s": n * every_s,
                    "task_id": f"task-{n}",
                    "user_id": "u",
                    "region": "west",
                    "task_type": types[n % 2],
                    "item_id": f"{types[n % 2]}-{n % 8}",
                    "alpha": 0.5,
                }
                | overrides
            )
        )
        for n in range(num_tasks)
    )


async def replayed(script, plan=None, edges=None, view=None, **options):
    broker = FakeBroker(script, edges)
    async with serving(broker) as address:
        result = await replay(address, plan or make_plan(), ITEMS, ReplayOptions(lead_s=0.05, **({"deadline_s": 30.0} | options)), view)
    return broker, result


async def test_every_planned_task_is_sent_once_at_its_intended_instant():
    rng = np.random.default_rng(7)
    mix = DriftingMix((MixPhase(0.0, {"facts": 0.9, "question": 0.1}), MixPhase(1.0, {"facts": 0.1, "question": 0.9})))
    by_type = {t: [item.item_id for item in ITEMS.of_type(t)] for t in ITEMS.task_types}
    plan = plan_load(by_type, mix, poisson(100, 2.0, rng), [User("u1", "west"), User("u2", "east")], rng)
    broker, result = await replayed(lambda request: Answer(after_s=0.05), plan, mix=mix)
    assert [record.task_id for record in result.finished] == [planned.task_id for planned in plan]
    assert min(record.late_s for record in result.finished) >= 0.0
    assert len(broker.requests) == len(plan)
    assert np.corrcoef(np.sort(broker.arrivals_s), [planned.at_s for planned in plan])[0, 1] > 0.9
    assert {request.region for request in broker.requests} == {"west", "east"}
    assert result.drifts_at_s == (1.0,)


class OvershootingClock(SystemClock):
    """Wakes every sleeper some time after its instant; nothing really waits."""

    def __init__(self, overshoot_s):
        self._now_s = 100.0
        self._overshoot_s = overshoot_s

    def now_s(self):
        return self._now_s

    async def sleep(self, seconds):
        self._now_s += seconds + self._overshoot_s if seconds > 0 else 0.0


async def test_late_wake_ups_never_add_up():
    clock, late_s = OvershootingClock(0.004), []
    await paced(make_plan(2000, 0.01), 100.5, clock, lambda planned: late_s.append(clock.now_s() - 100.5 - planned.at_s))
    assert len(late_s) == 2000
    assert max(late_s) == pytest.approx(0.004)
    assert min(late_s) >= 0.0


async def test_a_sender_that_fell_behind_catches_up_without_waiting():
    clock, sent_at_s = OvershootingClock(0.5), []
    await paced(make_plan(10, 0.1), 100.0, clock, lambda planned: sent_at_s.append(clock.now_s()))
    assert sent_at_s[1:6] == [pytest.approx(100.6)] * 5


async def test_slow_answers_do_not_hold_back_later_sends():
    """No task is answered before the last one has been sent."""
    all_sent, seen = asyncio.Event(), []

    def script(request):
        seen.append(request)
        if len(seen) == 20:
            all_sent.set()
        return Answer(until=all_sent)

    _, result = await replayed(script, make_plan(20, 0.005), deadline_s=60.0)
    assert len(result.completed) == 20


async def test_failed_and_rejected_tasks_are_kept_apart_and_out_of_percentiles():
    ends = {
        "facts-0": Answer(refuse=queue_full()),
        "facts-2": Answer(refuse=predicted_late(2.0, 1.0)),
        "facts-4": Answer(refuse=invalid_field("prompt", "empty")),
        "question-1": Answer(after_s=0.8, fail_after_tokens=RpcFailure(grpc.StatusCode.ABORTED, "EDGE_DIED", "the edge died")),
        "question-3": Answer(summary=False),
    }

    def script(request):
        item = next(item for item in ITEMS.items if item.prompt == request.prompt)
        return ends.get(item.item_id, Answer(text="yes it is"))

    _, result = await replayed(script, make_plan(8))
    by_item = {record.item_id: record for record in result.finished}
    assert [by_item[i].outcome for i in ("facts-0", "facts-2", "facts-4")] == [Outcome.REJECTED] * 3
    assert (by_item["facts-2"].status, by_item["facts-2"].reason) == ("DEADLINE_EXCEEDED", "PREDICTED_LATE")
    assert (by_item["question-1"].outcome, by_item["question-1"].status) == (Outcome.FAILED, "ABORTED")
    assert by_item["question-3"].reason == "NO_SUMMARY"
    numbers = run_numbers(result)
    counts = {key: numbers["tasks"][key] for key in ("sent", "completed", "failed", "rejected")}
    assert counts == {"sent": 8, "completed": 3, "failed": 2, "rejected": 3}
    assert numbers["latency_s"]["p99"] <= max(record.latency_s for record in result.completed)
    assert by_item["question-1"].latency_s >= 0.8
    assert numbers["total_quality"] == {"expected": pytest.approx(2.25), "realised": pytest.approx(3.0)}


async def test_a_deadline_ends_a_task_that_never_answers():
    broker, result = await replayed(lambda request: Answer(after_s=30.0), make_plan(2), deadline_s=1.0)
    assert {(r.outcome, r.status) for r in result.finished} == {(Outcome.FAILED, "DEADLINE_EXCEEDED")}
    assert all(0 < deadline_s <= 1.05 for deadline_s in broker.deadlines_s)


async def test_answers_are_scored_against_references_and_scores_are_sent_back():
    def script(request):
        return Answer(text="yes it is" if request.task_type == "facts" else "yes perhaps not")

    broker, result = await replayed(script, make_plan(4))
    scores = {record.task_type: record.score for record in result.finished}
    assert scores["facts"] == 1.0
    assert 0.0 < scores["question"] < 1.0
    assert broker.scores == {record.served_id: pytest.approx(record.score) for record in result.finished}
    assert result.scores_sent == 4


async def test_scores_and_task_types_stay_with_the_user_when_asked():
    broker, result = await replayed(lambda request: Answer(), make_plan(4), send_scores=False, send_task_type=False)
    assert broker.scores == {}
    assert {request.task_type for request in broker.requests} == {""}
    assert all(record.score is not None for record in result.finished)


async def test_a_restart_discards_the_tokens_that_came_before():
    _, once = await replayed(lambda request: Answer(text="yes it is"), make_plan(1))
    _, restarted = await replayed(lambda request: Answer(text="yes it is", restarts=2), make_plan(1))
    assert restarted.finished[0].restarts == 2
    assert restarted.finished[0].tokens_sha == once.finished[0].tokens_sha


async def test_nothing_is_retried_unless_asked():
    seen: dict[str, int] = {}

    def script(request):
        seen[request.prompt] = seen.get(request.prompt, 0) + 1
        return Answer() if seen[request.prompt] > 1 else Answer(refuse=queue_full(retry_after_s=0.05))

    _, once = await replayed(script, make_plan(4))
    assert {record.outcome for record in once.finished} == {Outcome.REJECTED}
    seen.clear()
    broker, again = await replayed(script, make_plan(4), retries=1)
    assert {record.outcome for record in again.finished} == {Outcome.COMPLETED}
    assert len({request.idempotency_key for request in broker.requests}) == 8


@pytest.mark.parametrize(("reason", "outcome"), [("TRANSPORT", Outcome.COMPLETED), ("GONE", Outcome.FAILED)])
async def test_a_call_that_a_stopping_broker_cut_off_is_sent_again_and_one_that_was_cancelled_is_not(reason, outcome):
    seen: set[str] = set()

    def script(request):
        first = request.prompt not in seen
        seen.add(request.prompt)
        return Answer(refuse=RpcFailure(grpc.StatusCode.CANCELLED, reason, "it ended")) if first else Answer()

    _, result = await replayed(script, make_plan(4), retries=1)
    assert {record.outcome for record in result.finished} == {outcome}


async def test_records_are_kept_as_json_lines(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    _, result = await replayed(lambda request: Answer(text="yes it is"), make_plan(5), records_path=path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["task_id"] for line in lines} == {record.task_id for record in result.finished}
    keys = {"intended_at_s", "sent_at_s", "first_token_at_s", "end_at_s", "edge_id", "attempts", "version", "tokens_sha", "status"}
    assert keys <= lines[0].keys()
    assert not any("prompt 0" in line for line in path.read_text().splitlines())  # prompts stay out of records


async def test_edges_are_sampled_and_a_version_change_shows_as_an_update():
    edges = [make_listed_edge("small", "v1"), make_listed_edge("large", "v1")]

    def script(request):
        if request.prompt.endswith("7"):
            edges[0] = make_listed_edge("small", "v2", mix={"facts": 1.0})
        return Answer(edge_id="small")

    _, result = await replayed(script, make_plan(40, 0.02), edges, sample_every_s=0.1)
    assert len({sample.at_s for sample in result.samples}) >= 5
    [update] = result.updates
    assert (update.edge_id, update.version, dict(update.mix)) == ("small", "v2", {"facts": 1.0})
    assert run_numbers(result)["updates"] == 1


class StuckView(QuietView):
    """Hangs in `show` until it is let go."""

    every_s = 0.02

    def __init__(self):
        self.shown: list[Progress] = []
        self.let_go = threading.Event()
        self.was_let_go = False

    def show(self, progress):
        self.shown.append(progress)
        self.was_let_go = self.let_go.wait(30.0)


async def test_a_view_that_hangs_holds_back_no_send():
    view, seen = StuckView(), []

    def script(request):
        seen.append(request)
        if len(seen) == 60:
            view.let_go.set()
        return Answer(text="yes it is", edge_id="large", after_s=0.2)

    _, result = await replayed(script, make_plan(60, 0.005), view=view, deadline_s=60.0)
    assert len(result.completed) == 60
    assert view.was_let_go
    assert view.shown[0].planned == 60
    assert {row.sample.edge_id for row in view.shown[0].edges} == {"large", "small"}


async def test_a_target_that_does_not_answer_is_one_clear_error():
    with pytest.raises(ReplayError, match=r"target 127\.0\.0\.1:1 does not answer"):
        await replay("127.0.0.1:1", make_plan(1), ITEMS, ReplayOptions())


async def test_edges_that_never_become_ready_are_named():
    edges = [make_listed_edge("small", state=worker_pb2.EDGE_STATE_UPDATING)]
    with pytest.raises(ReplayError, match="not ready within 0 s: small"):
        await replayed(lambda request: Answer(), edges=edges, ready_within_s=0.3)


async def test_an_item_that_the_task_set_lacks_is_refused_before_anything_is_sent():
    with pytest.raises(ReplayError, match="item_id 'nowhere'"):
        await replayed(lambda request: Answer(), make_plan(1, item_id="nowhere"))


async def test_the_fake_broker_speaks_the_status_table():
    broker = FakeBroker(lambda request: Answer(refuse=queue_full(retry_after_s=2.0)))
    async with serving(broker) as address, channel(address) as connection:
        call = inference_pb2_grpc.InferenceServiceStub(connection).Generate(inference_pb2.GenerateRequest(prompt="x"), timeout=2.0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
