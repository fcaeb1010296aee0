"""Runs every policy with every trigger on the same loads, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from loadgen.simulator.errors import SimulationInputError
from loadgen.simulator.figures import Figures, Interval, figures, interval, over_seeds
from loadgen.simulator.load import draw_load
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.simulation import ORACLE, simulate
from services.core.merging import triggers
from services.core.naming import nearest
from services.core.offload import policies
from services.core.workload.arrivals import Instants

Tell = Callable[[str, int, int], None]  # what runs, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy with a trigger; `name` is the policy's where all arms have the same trigger."""

    name: str
    policy: str
    trigger: str


@dataclass(frozen=True, slots=True)
class Comparison:
    scenario: str
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Figures, ...]]  # by arm, in the order of the seeds

    def summary(self, arm: str) -> dict[str, Interval]:
        return over_seeds(self.runs[arm])

    def paired(self, arm: str, other: str, figure: str) -> Interval:
        """Mean difference `arm` - `other` over seeds: both had the same load."""
        pairs = zip(self.runs[arm], self.runs[other], strict=True)
        return interval([getattr(one, figure) - getattr(two, figure) for one, two in pairs])


def arms(policy_names: Sequence[str], trigger_names: Sequence[str]) -> tuple[Arm, ...]:
    """`all` stands for every name that is registered; `oracle` is none, and is named where it is wanted."""
    chosen = _known([name.replace("-", "_") for name in policy_names], policies.names(), "policy", (ORACLE,))
    rules = _known(trigger_names, triggers.names(), "trigger")
    return tuple(Arm(p if len(rules) == 1 else f"{p}+{t}", p, t) for p in chosen for t in rules)


def compare(
    scenario: Scenario, chosen: Sequence[Arm], seeds: Sequence[int], tell: Tell, trace_arrival_s: Instants | None = None
) -> Comparison:
    runs: dict[str, list[Figures]] = {arm.name: [] for arm in chosen}
    for done, seed in enumerate(seeds):
        load = draw_load(scenario, seed, trace_arrival_s)
        for n, arm in enumerate(chosen):
            tell(f"{arm.name}, seed {seed}, {len(load)} tasks", done * len(chosen) + n, len(seeds) * len(chosen))
            outcome = simulate(scenario, load, arm.policy, arm.trigger, seed)
            if not outcome.completed.any():
                raise SimulationInputError(f"{scenario.name}: {arm.name} completed no task; give the edges a larger max_queue or a link")
            runs[arm.name].append(figures(outcome, scenario.quality_scale))
    return Comparison(scenario.name, tuple(seeds), {name: tuple(of_arm) for name, of_arm in runs.items()})


def _known(given: Sequence[str], registered: Sequence[str], kind: str, others: Sequence[str] = ()) -> list[str]:
    given, known = [name for one in given for name in (registered if one == "all" else [one])], [*registered, *others]
    for name in given:
        if name not in known:
            hint = nearest(name, known, f"there are {', '.join(known)}")
            raise SimulationInputError(f"{kind} {name!r} is unknown; {hint}")
    if not given or len(set(given)) < len(given):
        raise SimulationInputError(f"{kind}: name each once, and at least one")
    return given
