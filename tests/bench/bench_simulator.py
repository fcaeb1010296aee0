"""Tasks a second of the simulator on one core, beside a SimPy model of the same servers, and its cost by number of edges; prints them.

Run `python -m tests.bench.bench_simulator`. Not a test: it asserts nothing.
"""

from __future__ import annotations

import time

import simpy

from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Phase, Scenario
from loadgen.simulator.simulation import simulate
from loadgen.simulator.stated import StatedModel, StatedOptions

STEP_S, PER_EDGE_PER_S = 0.01, 12.0


def made(num_edges: int, num_tasks: int) -> Scenario:
    rate_per_s = PER_EDGE_PER_S * num_edges
    phases = (Phase(0.0, {"a": 1.0}), Phase(0.5, {"b": 0.5, "c": 0.5}))
    return Scenario(
        "bench",
        "",
        StatedModel(StatedOptions(("a", "b", "c", "d", "e"), step_base_s=STEP_S)),
        (EdgeGroup("edge", count=num_edges),),
        LoadOptions(rate_per_s, phases=phases),
        duration_s=num_tasks / rate_per_s,
    )


def ours_s(num_edges: int, num_tasks: int, policy: str = "onto", trigger: str = "jtom") -> float:
    """CPU seconds for one task."""
    scenario = made(num_edges, num_tasks)
    load = draw_load(scenario, 0)
    began_s = time.process_time()
    simulate(scenario, load, policy, trigger, 0)
    return (time.process_time() - began_s) / len(load)


def simpy_s(num_edges: int, num_tasks: int) -> float:
    """CPU seconds for one task: round robin over the same servers, no predictions, no activations, no updates."""
    load = draw_load(made(num_edges, num_tasks), 0)
    began_s = time.process_time()
    _in_simpy(load, num_edges)
    return (time.process_time() - began_s) / len(load)


def _in_simpy(load: Load, num_edges: int) -> None:
    environment = simpy.Environment()
    servers = [simpy.Resource(environment, capacity=4) for _ in range(num_edges)]
    output_tokens = load.output_tokens.tolist()

    def task(n: int):
        with servers[n % num_edges].request() as slot:
            yield slot
            yield environment.timeout(output_tokens[n] * STEP_S)

    def users():
        for n, at_s in enumerate(load.at_s.tolist()):
            yield environment.timeout(at_s - environment.now)
            environment.process(task(n))

    environment.process(users())
    environment.run()


def main() -> None:
    each_s, other_s = ours_s(20, 20_000), simpy_s(20, 20_000)
    print(f"20 edges, onto + jtom, activations on: {1 / each_s:,.0f} tasks/s; SimPy, round robin: {1 / other_s:,.0f} tasks/s")
    for policy, trigger in (("onto", "never"), ("round_robin", "never")):
        print(f"20 edges, {policy} + {trigger}: {1 / ours_s(20, 20_000, policy, trigger):,.0f} tasks/s")
    for num_edges in (10, 30, 100, 300, 1000):
        print(f"{num_edges:>5} edges: {ours_s(num_edges, max(10_000, 60 * num_edges)) * 1e6:6.1f} us a task")


if __name__ == "__main__":
    main()
