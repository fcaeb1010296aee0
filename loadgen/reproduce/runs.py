"""One simulated run as an input of `Context.map`: which scenario, which arm, which seed. Plain values, so that it can be keyed and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from loadgen.simulator.comparison import OURS, QUANTISED, STATIC, Arm, published, with_options
from loadgen.simulator.figures import figures
from loadgen.simulator.load import draw_load
from loadgen.simulator.model import SimulatedModel
from loadgen.simulator.scenario import EdgeGroup, Phase, Scenario, profile, scenario
from loadgen.simulator.simulation import Outcome, simulate
from loadgen.simulator.stated import StatedModel, StatedOptions
from services.core.baselines import PAPER_JTOM, PUBLISHED

__all__ = [
    "JTOM", "ONTO", "OURS", "PAPER_FORMS", "PAPER_SERVERS", "QUANTISED", "STATIC", "STRONG_FORMS",
    "Arm", "Run", "figures_of", "outcome_of", "scenario_of", "strongest", "utilisation",
]  # fmt: skip

PAPER_RATE, PAPER_SERVERS, PAPER_UTILISATION = 19.0, 10, 0.8  # the highest rate loads so many servers so much
TIERS = (("small", 0.5), ("medium", 1.0), ("large", 2.0))  # speed against the medium one
# Share of all experts that fits, by tier: where the model's merges keep one task type, and less than all of what they could.
MEMORY = {"demo": (0.22, 0.30, 0.37), "roomy": (0.22, 0.30, 0.37), "five-tasks": (0.06, 0.12, 0.22)}
NO_LIMIT = 1_000_000  # of a queue: the paper rejects nothing
# Of Table I: mean on and off its diagonal. Whole share: what 22, 30 and 37 % of the experts hold is then 1.8, 2.5 and 3.1 of five tasks.
ROOMY = StatedOptions(
    task_types=("COPA", "MultiRC", "SQuAD", "WikiQA", "WinoGrande"),
    own_quality=0.742,
    other_quality=0.439,
    whole_share=0.12,
    prompt_tokens=7,
    prompt_bytes=33,
    output_tokens=3.5,
    output_distribution="geometric",
    step_base_s=0.0026,
    prefill_base_s=0.0043,
    build_s=0.0,
)


@dataclass(frozen=True, slots=True)
class Run:
    """`base` is a scenario of `loadgen/scenarios`; what is not None stands in for what it says. `num_edges` in the paper's three tiers, at
    the speed at which `PAPER_RATE` loads `PAPER_SERVERS` of them to `PAPER_UTILISATION`. `model`: one of `MEMORY`; "" as the scenario's.
    `host_memory`: servers of QoS-Quant, MoE-Load and Multi-MoE have room for all experts beside the edge's memory, which no merge needs;
    without, memory is equal for all, as in the paper."""

    base: str
    arm: Arm
    seed: int
    duration_s: float
    rate_per_s: float | None = None
    num_edges: int | None = None
    quality_scale: float | None = None
    model: str = ""
    host_memory: bool = False
    phases: tuple[tuple[float, Mapping[str, float]], ...] = ()


def figures_of(run: Run) -> dict[str, float]:
    """Every figure of `simulator/figures.py`, by name."""
    made = scenario_of(run)
    return asdict(figures(outcome_of(run, made), made.quality_scale))


def outcome_of(run: Run, made: Scenario) -> Outcome:
    return simulate(made, draw_load(made, run.seed), run.arm.policy, run.arm.trigger, run.seed, run.arm.holding)


def scenario_of(run: Run) -> Scenario:
    base = scenario(run.base)
    changed: dict[str, Any] = {"duration_s": run.duration_s, "runtimes": replace(base.runtimes, host_memory=run.host_memory)}
    if run.model:
        changed["model"] = _model(run.model)
    if run.quality_scale is not None:
        changed["quality_scale"] = run.quality_scale
    load = base.load if run.rate_per_s is None else replace(base.load, rate_per_s=run.rate_per_s)
    if run.phases:
        load = replace(load, phases=tuple(Phase(start, mix) for start, mix in run.phases))
    if run.num_edges is not None:
        changed["edges"] = paper_edges(run.num_edges, paper_speed(changed.get("model", base.model)), MEMORY[run.model or "demo"])
    return with_options(replace(base, load=load, **changed), run.arm)


def paper_edges(num_edges: int, speed: float, memory: tuple[float, ...] = MEMORY["demo"]) -> tuple[EdgeGroup, ...]:
    """The three tiers in turn; one task at a time, nothing rejected."""
    counts = [num_edges // 3 + (n < num_edges % 3) for n in range(3)]
    tiers = zip(counts, TIERS, memory, strict=True)
    return tuple(EdgeGroup(name, n, share, speed * faster, 1, NO_LIMIT) for n, (name, faster), share in tiers if n)


def paper_speed(model: SimulatedModel) -> float:
    """Of a medium server, against the machine that the model was measured on."""
    sums = sum(group.count * group.speed for group in paper_edges(PAPER_SERVERS, 1.0))
    return PAPER_RATE * usual_task_s(model) / (PAPER_UTILISATION * sums)


def utilisation(rate_per_s: float, num_edges: int) -> float:
    """Share of all servers' time that the paper's load takes, if all do their share."""
    speeds = [sum(group.count * group.speed for group in paper_edges(n, 1.0)) for n in (PAPER_SERVERS, num_edges)]
    return PAPER_UTILISATION * rate_per_s / PAPER_RATE * speeds[0] / speeds[1]


def usual_task_s(model: SimulatedModel) -> float:
    """Mean time that a task takes alone on an edge of speed 1."""
    rng = np.random.default_rng(0)
    times = model.step_times
    drawn = [model.lengths(t, 1000, rng) for t in model.task_types]
    prompt, output = (np.mean([getattr(lengths, name).mean() for lengths in drawn]) for name in ("prompt_tokens", "output_tokens"))
    reading_s = times.prefill_base_s + times.prefill_token_s * float(prompt)
    return reading_s + (times.step_base_s + times.step_row_s) * float(output)


def strongest(printed: str) -> str:
    """Name of a baseline's arm in its strongest form."""
    return f"{printed}, strongest"


@cache
def _model(name: str) -> SimulatedModel:
    return StatedModel(ROOMY) if name == "roomy" else profile(name)


ONTO = Arm("ONTO", "onto", "never")
JTOM = Arm("JTOM", "onto", "jtom", trigger_options=PAPER_JTOM)
PRINTED = {baseline.paper.policy: baseline.name for baseline in PUBLISHED}  # by policy, as the paper prints it
PAPER_FORMS = tuple(replace(arm, name=PRINTED[arm.policy]) for arm in published("paper"))
STRONG_FORMS = tuple(replace(arm, name=strongest(PRINTED[arm.policy])) for arm in published("strong"))
