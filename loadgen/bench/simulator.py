"""Tasks a second of the simulator on one core, beside a SimPy model of the same servers in the same run, and its cost by number of edges.

CPU time of this process, so that other work on the machine is not counted. The alternative gets less to do: it decides nothing and
predicts nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

import simpy
from simpy.events import Event

from loadgen.simulator.load import Load, draw_load
from loadgen.simulator.scenario import EdgeGroup, LoadOptions, Phase, Scenario
from loadgen.simulator.simulation import simulate
from loadgen.simulator.stated import StatedModel, StatedOptions

STEP_S, PER_EDGE_PER_S = 0.01, 12.0
EDGES, TASKS, TASKS_PER_EDGE = 20, 20_000, 60
SCALES = (10, 30, 100, 300, 1000)  # edges

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SimulatorFigures:
    """Tasks a second of CPU time: medians of the rounds, with the slowest and fastest of ours."""

    num_edges: int  # of all but `task_s_by_edges`
    tasks_per_s: float
    slowest: float
    fastest: float
    simpy_tasks_per_s: float
    without_updates: float  # ONTO, no re-merging
    round_robin: float  # no prediction in the choice either
    task_s_by_edges: dict[int, float]  # seconds for one task, ONTO and JTOM

    @property
    def ratio_simpy(self) -> float:
        return self.tasks_per_s / self.simpy_tasks_per_s


def measure(rounds: int, scales: tuple[int, ...], tell: Tell, num_tasks: int = TASKS) -> SimulatorFigures:
    """Ours and SimPy in turn, so that both see the same machine."""
    ours, others = [], []
    for n in range(rounds):
        tell(f"round {n + 1} of {rounds}: {EDGES} edges, {num_tasks} tasks")
        ours.append(1.0 / ours_s(EDGES, num_tasks))
        others.append(1.0 / simpy_s(EDGES, num_tasks))
    told = {}
    for num_edges in scales:
        tell(f"{num_edges} edges")
        told[num_edges] = ours_s(num_edges, max(num_tasks // 2, TASKS_PER_EDGE * num_edges))
    tell("without updates, and round robin")
    return SimulatorFigures(
        num_edges=EDGES,
        tasks_per_s=statistics.median(ours),
        slowest=min(ours),
        fastest=max(ours),
        simpy_tasks_per_s=statistics.median(others),
        without_updates=1.0 / ours_s(EDGES, num_tasks, "onto", "never"),
        round_robin=1.0 / ours_s(EDGES, num_tasks, "round_robin", "never"),
        task_s_by_edges=told,
    )


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

    def task(n: int) -> Generator[Event, object, None]:
        with servers[n % num_edges].request() as slot:
            yield slot
            yield environment.timeout(output_tokens[n] * STEP_S)

    def users() -> Generator[Event, object, None]:
        for n, at_s in enumerate(load.at_s.tolist()):
            yield environment.timeout(at_s - environment.now)
            environment.process(task(n))

    environment.process(users())
    environment.run()
