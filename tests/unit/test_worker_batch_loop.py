"""The batch loop around a real engine: failed steps, emulated speed, stalls, actions at step boundaries."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import pytest
import torch

from services.core.offload.values import StepTimes
from services.model.families.switch import SwitchFamily
from services.model.generation import BatchEngine, Finished, GenTask, StepTiming
from services.model.recorder import CountingRecorder
from services.model.threads import single_thread
from services.runtime.clock import SystemClock
from services.runtime.status import RpcFailure
from services.worker.batch_loop import BatchLoop
from services.worker.emulation import Device
from tests.unit.pico import write_pico_checkpoint

PROMPT = (5, 6, 7, 1)


class Words:
    def decode(self, ids):
        return " ".join(map(str, ids))

    def delta(self, ids_so_far, new_id):
        return f" {new_id}"


class Faulty:
    """A model whose steps can be made to fail or to wait."""

    def __init__(self, model):
        self._model = model
        self.failures = 0
        self.step_s = 0.0
        self.pause_s = 0.0  # of the next step alone
        self.shape = model.shape

    def __getattr__(self, name):
        return getattr(self._model, name)

    def step(self, cache, slots, recorder=None):
        if self.failures:
            self.failures -= 1
            raise RuntimeError("out of memory")
        if self.pause_s:
            pause_s, self.pause_s = self.pause_s, 0.0
            threading.Event().wait(pause_s)
        if self.step_s:
            threading.Event().wait(self.step_s)
        return self._model.step(cache, slots, recorder)


@pytest.fixture(scope="module")
def pico(tmp_path_factory):
    return SwitchFamily().read(write_pico_checkpoint(tmp_path_factory.mktemp("pico")), torch.float32, torch.device("cpu"))


@asynccontextmanager
async def running(model, *, max_batch=2, max_queue=8, speed=1.0, stated=None):
    thread = single_thread("batch")
    engine = BatchEngine(model, Words(), "v1", max_batch, CountingRecorder)
    loop = BatchLoop(engine, SystemClock(), thread, max_batch=max_batch, max_queue=max_queue, device=Device(speed, stated))
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        thread.shutdown()


async def ended(ticket):
    while True:
        event = await asyncio.wait_for(ticket.events.get(), 10)
        if isinstance(event, Finished | RpcFailure):
            return event


def make_task(name, max_tokens=5):
    return GenTask(name, PROMPT, max_tokens)


async def test_a_failed_step_fails_its_batch_and_the_queue_goes_on(pico):
    model = Faulty(pico)
    model.failures = 1
    async with running(model, max_batch=1) as loop:
        first, second = loop.submit(make_task("a")), loop.submit(make_task("b"))
        failed = await ended(first)
        assert isinstance(failed, RpcFailure)
        assert failed.code == grpc.StatusCode.INTERNAL
        assert isinstance(await ended(second), Finished)
        assert loop.task_ids == []


async def test_half_the_speed_takes_twice_as_long_and_the_service_model_says_so(pico):
    model = Faulty(pico)
    model.step_s = 0.01
    async with running(model, speed=0.5) as loop:
        ticket = loop.submit(make_task("a", 20))
        finished = await ended(ticket)
        assert isinstance(finished, Finished)
        assert ticket.inference_s > 0.019 * finished.output_tokens
        base_s, row_s = loop.step_times.step.line()
        assert base_s + row_s > 0.019


async def test_a_device_of_stated_times_takes_them_and_makes_up_for_a_pause_of_this_machine(pico):
    model = Faulty(pico)
    async with running(model, stated=StepTimes(0.1, 0.0, 0.1, 0.0)) as loop:
        first = loop.submit(make_task("a", 10))
        finished = await ended(first)
        assert finished.output_tokens >= 3
        assert first.inference_s > 0.1 + 0.1 * finished.output_tokens - 0.01
        assert 0.09 < loop.step_times.step.line()[0] < 0.2
        model.pause_s, paused = 0.35, loop.submit(make_task("b", 10))
        finished = await ended(paused)
        assert paused.inference_s < 0.1 + 0.1 * finished.output_tokens + 0.12, "the pause of 0.15 s was not made up for"


def test_a_device_waits_for_what_is_left_of_its_stated_times():
    device, turn = Device(stated=StepTimes(0.02, 0.005, 0.03, 0.001)), StepTiming(2, 16, 0.004, 3, 0.002, 1)
    assert device.owed_s(turn, 0.01) == pytest.approx(0.03 + 16 * 0.001 + 0.02 + 3 * 0.005 - 0.01)
    assert device.owed_s(turn, 0.2) < 0.0
    assert device.owed_s(StepTiming(), 0.2) == 0.0
    assert Device(0.5).owed_s(turn, 0.2) == pytest.approx(0.006)
    assert Device(0.5).most_behind_s == 0.0


async def test_an_action_runs_between_steps_and_its_error_is_its_callers(pico):
    async with running(pico) as loop:
        ticket = loop.submit(make_task("a", 30))
        assert await loop.at_boundary(lambda engine: threading.current_thread().name) == "batch_0"
        with pytest.raises(ZeroDivisionError):
            await loop.at_boundary(lambda engine: 1 // 0)
        assert isinstance(await ended(ticket), Finished)


async def test_a_stall_is_the_time_that_waiting_tasks_saw_nothing_computed(pico):
    async with running(pico) as loop:
        ticket = loop.submit(make_task("a", 30))
        with loop.watching() as watch:
            await loop.at_boundary(lambda engine: threading.Event().wait(0.2))
            await loop.next_turn()
        assert 0.2 <= watch.longest_s < 0.6
        await ended(ticket)


async def test_the_age_of_a_step_tells_a_stuck_device_from_an_idle_one(pico):
    model = Faulty(pico)
    async with running(model) as loop:
        assert loop.step_age_s == 0.0
        model.step_s = 0.4
        ticket = loop.submit(make_task("a", 1))
        await SystemClock().sleep(0.2)
        assert loop.step_age_s > 0.1
        await ended(ticket)
        await SystemClock().sleep(0.05)
        assert loop.step_age_s == 0.0


async def test_an_emptied_loop_keeps_its_queue_until_a_model_is_back(pico):
    async with running(pico, max_batch=1) as loop:
        first = loop.submit(make_task("a", 20))
        await first.events.get()
        waiting = loop.submit(make_task("b"))
        await loop.empty()
        assert isinstance(await ended(first), Finished)
        assert loop.task_ids == ["b"]
        await loop.at_boundary(lambda engine: engine.install(pico, "v2"))
        await loop.at_boundary(BatchEngine.resume)
        finished = await ended(waiting)
        assert isinstance(finished, Finished)
        assert finished.version == "v2"


async def test_prompts_wait_for_company_where_reading_halts_another_and_others_come_often(pico):
    model = Faulty(pico)
    model.shape = replace(pico.shape, eos_token_ids=())
    async with running(model, max_batch=3, stated=StepTimes(0.05, 0.0, 0.3, 0.0)) as loop:
        now_s = SystemClock().now_s()
        for n in range(100):  # learned before: a task comes every 0.1 s
            loop._admission.admits(1, 0, 0.3, now_s + 0.1 * (n - 100))
        long = loop.submit(make_task("a", 40))
        while long.started_at_s is None:
            await loop.next_turn()
        first = loop.submit(make_task("b", 1))
        await loop.next_turn()
        await loop.next_turn()
        assert first.started_at_s is None
        second = loop.submit(make_task("c", 1))
        await asyncio.gather(ended(first), ended(second))
        assert first.started_at_s == second.started_at_s
