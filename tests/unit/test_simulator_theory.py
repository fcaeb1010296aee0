"""The simulator against queueing theory and against a small SimPy model of the same system."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
import simpy

from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Scenario
from loadgen.simulator.simulation import Outcome, simulate
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.core.offload.values import Link

TOKENS = 500  # a mean answer: so many that geometric lengths are as good as exponential times
SERVICE_S = 1.0


def one_edge(slots: int, utilisation: float, duration_s: float, **options) -> Scenario:
    stated = StatedOptions(("a",), output_tokens=TOKENS, step_base_s=SERVICE_S / TOKENS, prompt_tokens=1, **options)
    edges = (EdgeGroup("only", max_batch=slots, max_queue=1_000_000),)
    return Scenario("one", "", StatedModel(stated), edges, LoadOptions(utilisation * slots / SERVICE_S), duration_s)


def outcomes(made: Scenario, seeds: int) -> list[Outcome]:
    return [simulate(made, draw_load(made, seed), "round_robin", "never", seed) for seed in range(seeds)]


def mean_wait_s(runs: list[Outcome]) -> float:
    return float(np.mean(np.concatenate([run.started_at_s - run.at_edge_s for run in runs])))


def erlang_c(slots: int, offered: float) -> float:
    waiting = offered**slots / math.factorial(slots) * slots / (slots - offered)
    return waiting / (sum(offered**n / math.factorial(n) for n in range(slots)) + waiting)


def waits_by_recursion_s(load: Load, slots: int) -> np.ndarray:
    """Kiefer and Wolfowitz: each task takes the slot that frees first (one slot: Lindley)."""
    free_at_s, waits_s = [0.0] * slots, np.zeros(len(load))
    for n, at_s in enumerate(load.at_s.tolist()):
        begins_s = max(at_s, heapq.heappop(free_at_s))
        waits_s[n] = begins_s - at_s
        heapq.heappush(free_at_s, begins_s + int(load.output_tokens[n]) * SERVICE_S / TOKENS)
    return waits_s


@pytest.mark.parametrize("slots", [1, 3])
def test_each_task_waits_as_the_recursion_for_its_own_load_says(slots):
    (run,) = outcomes(one_edge(slots, 0.8, 2_000.0), 1)
    steps = (run.started_at_s - run.at_edge_s - waits_by_recursion_s(run.load, slots)) / (SERVICE_S / TOKENS)
    within = 1e-6 if slots == 1 else 5.0  # a task begins at a step boundary of those that run, so offsets of a step each add up a little
    assert np.abs(steps).max() < within


def test_one_slot_with_exponential_service_waits_as_mm1():
    runs = outcomes(one_edge(1, 0.6, 12_000.0), 3)
    assert mean_wait_s(runs) == pytest.approx(0.6 / 0.4 * SERVICE_S, rel=0.1)


def test_one_slot_with_constant_service_waits_as_md1():
    runs = outcomes(one_edge(1, 0.6, 8_000.0, output_distribution="constant"), 3)
    assert mean_wait_s(runs) == pytest.approx(0.5 * 0.6 / 0.4 * SERVICE_S, rel=0.05)


@pytest.mark.parametrize("slots", [3])
def test_several_slots_whose_speed_does_not_depend_on_the_batch_wait_as_mmc(slots):
    utilisation = 0.7
    runs = outcomes(one_edge(slots, utilisation, 24_000.0 / slots), 3)
    theory_s = erlang_c(slots, utilisation * slots) * SERVICE_S / (slots * (1.0 - utilisation))
    assert mean_wait_s(runs) == pytest.approx(theory_s, rel=0.1)


def test_tasks_in_the_system_are_rate_times_time_as_little_says():
    made = one_edge(2, 0.7, 5_000.0)
    (run,) = outcomes(made, 1)
    until_s = float(run.completed_at_s.max())
    instants = np.random.default_rng(987).random(20_000) * until_s
    inside = np.searchsorted(np.sort(run.load.at_s), instants) - np.searchsorted(np.sort(run.completed_at_s), instants)
    assert float(inside.mean()) == pytest.approx(float((run.completed_at_s - run.load.at_s).sum()) / until_s, rel=0.02)


@pytest.mark.parametrize("slots", [1, 3])
def test_a_simpy_model_of_the_same_system_agrees_within_one_percent(slots):
    links = {"near": Link(0.02, 1e4, 2e4), "far": Link(0.2, 5e3, 5e3)}
    stated = StatedOptions(("a",), output_tokens=200.0, step_base_s=0.005, prefill_base_s=0.0, prompt_bytes=400)
    edges = tuple(
        EdgeGroup(name, speed=speed, max_batch=slots, max_queue=1_000_000, regions=links)
        for name, speed in (("x", 1.0), ("y", 2.0), ("z", 0.8))
    )
    made = Scenario("three", "", StatedModel(stated), edges, LoadOptions(1.5 * slots, users=4), 3_000.0)
    load = draw_load(made, 5)
    outcome = simulate(made, load, "round_robin", "never", 5)
    took_s = in_simpy(load, [1.0, 2.0, 0.8], slots, links)
    ours_s = outcome.completed_at_s - load.at_s
    assert float(ours_s.mean()) == pytest.approx(float(took_s.mean()), rel=0.01)
    assert float(np.percentile(ours_s, 99)) == pytest.approx(float(np.percentile(took_s, 99)), rel=0.01)


def in_simpy(load: Load, speeds: list[float], slots: int, links: dict[str, Link]) -> np.ndarray:
    """Round robin over FIFO servers with links, on the same tasks."""
    environment = simpy.Environment()
    servers = [simpy.Resource(environment, capacity=slots) for _ in speeds]
    took_s = np.zeros(len(load))

    def task(n: int):
        link = links[load.regions[load.region[n]]]
        output_tokens = int(load.output_tokens[n])
        yield environment.timeout(link.latency_s + int(load.prompt_bytes[n]) / link.uplink_bytes_per_s)
        with servers[n % len(servers)].request() as slot:
            yield slot
            yield environment.timeout(output_tokens * 0.005 / speeds[n % len(servers)])
        yield environment.timeout(link.latency_s + output_tokens * 4.0 / link.downlink_bytes_per_s)
        took_s[n] = environment.now - load.at_s[n]

    def users():
        for n, at_s in enumerate(load.at_s.tolist()):
            yield environment.timeout(at_s - environment.now)
            environment.process(task(n))

    environment.process(users())
    environment.run()
    return took_s
