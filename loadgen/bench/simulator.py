"""Tasks a second of the simulator on one core, beside SimPy models of the same servers in the same run, and its cost by number of edges.

CPU time of this process, so that other work on the machine is not counted. Beside each other stand runs in which the same engine decides
(ours without updates, since SimPy's servers keep their models); the SimPy model that serves in turn says what events alone cost there.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from loadgen.bench.compiled import compiled_s
from loadgen.bench.simpy_model import Decided, in_turn
from loadgen.simulator import simulation
from loadgen.simulator.load import draw_load
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

    compiled: bool  # engine and simulator ran as machine code (`make compiled`), SimPy never does
    num_edges: int  # of all but `task_s_by_edges`
    tasks_per_s: float
    slowest: float
    fastest: float
    simpy_tasks_per_s: float  # in turn: decides and predicts nothing
    simpy_onto_tasks_per_s: float  # the same engine decides there
    without_updates: float  # ONTO, no re-merging
    round_robin: float  # no prediction in the choice either
    task_s_by_edges: dict[int, float]  # seconds for one task, ONTO and JTOM
    compiled_tasks_per_s: float | None  # of the compiled copy in the same rounds; None where there is none

    @property
    def ratio_simpy(self) -> float:
        """Of unequal work: all that ours does to servers in turn."""
        return self.tasks_per_s / self.simpy_tasks_per_s

    @property
    def ratio_simpy_onto(self) -> float:
        """Of equal decisions."""
        return self.without_updates / self.simpy_onto_tasks_per_s


def measure(
    rounds: int, scales: tuple[int, ...], tell: Tell, num_tasks: int = TASKS, compiled_folder: Path | None = None
) -> SimulatorFigures:
    """All in turn, so that all see the same machine. `compiled_folder`: the compiled copy, measured too."""
    ours: list[float] = []
    without_updates: list[float] = []
    round_robin: list[float] = []
    simpy: list[float] = []
    simpy_onto: list[float] = []
    compiled: list[float] = []
    for n in range(rounds):
        tell(f"round {n + 1} of {rounds}: {EDGES} edges, {num_tasks} tasks")
        ours.append(1.0 / ours_s(EDGES, num_tasks))
        if compiled_folder is not None:
            compiled.append(1.0 / compiled_s(compiled_folder, num_tasks))
        simpy.append(1.0 / simpy_s(EDGES, num_tasks))
        without_updates.append(1.0 / ours_s(EDGES, num_tasks, "onto", "never"))
        simpy_onto.append(1.0 / simpy_s(EDGES, num_tasks, decides=True))
        round_robin.append(1.0 / ours_s(EDGES, num_tasks, "round_robin", "never"))
    told = {}
    for num_edges in scales:
        tell(f"{num_edges} edges")
        told[num_edges] = ours_s(num_edges, max(num_tasks // 2, TASKS_PER_EDGE * num_edges))
    return SimulatorFigures(
        compiled=is_compiled(),
        num_edges=EDGES,
        tasks_per_s=statistics.median(ours),
        slowest=min(ours),
        fastest=max(ours),
        simpy_tasks_per_s=statistics.median(simpy),
        simpy_onto_tasks_per_s=statistics.median(simpy_onto),
        without_updates=statistics.median(without_updates),
        round_robin=statistics.median(round_robin),
        task_s_by_edges=told,
        compiled_tasks_per_s=statistics.median(compiled) if compiled else None,
    )


def is_compiled() -> bool:
    return not str(simulation.__file__).endswith(".py")


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


def simpy_s(num_edges: int, num_tasks: int, decides: bool = False) -> float:
    """CPU seconds for one task, setting up included, as for ours."""
    scenario = made(num_edges, num_tasks)
    load = draw_load(scenario, 0)
    began_s = time.process_time()
    if decides:
        Decided(scenario, load).run()
    else:
        in_turn(scenario, load)
    return (time.process_time() - began_s) / len(load)
