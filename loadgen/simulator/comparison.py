"""Runs every policy with every trigger on the same loads, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from signal import SIG_IGN, SIGINT, signal

from loadgen.simulator.errors import SimulationInputError
from loadgen.simulator.figures import Figures, Interval, figures, interval, over_seeds
from loadgen.simulator.holdings import Holding
from loadgen.simulator.load import draw_load
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.simulation import ORACLE, simulate
from services.core.baselines import PUBLISHED
from services.core.merging import triggers
from services.core.naming import nearest
from services.core.offload import policies
from services.core.workload.arrivals import Instants

Tell = Callable[[str, int, int], None]  # what runs, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy with a trigger, over what the edges hold; `name` is the policy's where all arms have the same trigger."""

    name: str
    policy: str
    trigger: str
    holding: Holding = "merged"


OURS = Arm("ours", "onto", "portfolio")  # what moedge does
CLAIRVOYANT = Arm("clairvoyant", "onto", "clairvoyant")  # told when traffic changes: regrets are against it
QUANTISED = Arm("quantised", "onto", "never", "quantised")  # the two rivals at equal bytes that need no adaptation
STATIC = Arm("static", "onto", "never", "static")
OWN = (OURS, CLAIRVOYANT, QUANTISED, STATIC)  # arms with a trigger of their own
SEVEN = ("mas", "lcs", "heft", "qual_greedy", "qos_quant", "moe_load", "multi_moe")  # policies of the paper's baselines


@dataclass(frozen=True, slots=True)
class Comparison:
    scenario: str
    seeds: tuple[int, ...]
    runs: Mapping[str, tuple[Figures, ...]]  # by arm, in the order of the seeds

    def summary(self, arm: str) -> dict[str, Interval]:
        return over_seeds(self.runs[arm])

    def best_baseline(self) -> str | None:
        """Of the arms of the seven, with whatever update rule they ran, the one with the lowest mean positive cost; None without any."""
        ran = [name for name in self.runs if name.partition("+")[0] in SEVEN]
        return min(ran, key=lambda name: self.summary(name)["positive_cost"].mean, default=None)

    def paired(self, arm: str, other: str, figure: str) -> Interval:
        """Mean difference `arm` - `other` over seeds: both had the same load."""
        pairs = zip(self.runs[arm], self.runs[other], strict=True)
        return interval([getattr(one, figure) - getattr(two, figure) for one, two in pairs])


def arms(policy_names: Sequence[str], trigger_names: Sequence[str]) -> tuple[Arm, ...]:
    """`all` policies: every name that is registered, the seven with the update rule of their strongest form, then those of `OWN` and
    `oracle`, which can be named alone too. Those of `OWN` have a trigger of their own."""
    given = [name.replace("-", "_") for name in policy_names]
    rules = _known(trigger_names, triggers.names(), "trigger")
    chosen = _known(given, [*policies.names(), *(arm.name for arm in OWN)], "policy", (ORACLE,))
    if "all" in given and ORACLE not in chosen:
        chosen.append(ORACLE)
    own = {arm.name: arm for arm in ([*OWN, *strongest()] if "all" in given and len(rules) == 1 else OWN)}
    made = [own.get(p, Arm(p, p, t)) if len(rules) == 1 or p in own else Arm(f"{p}+{t}", p, t) for p in chosen for t in rules]
    return tuple(dict.fromkeys(made))


def strongest() -> tuple[Arm, ...]:
    """The seven published baselines, each with the update rule that goes with its strongest form."""
    pairs = [baseline.strong for baseline in PUBLISHED if baseline.strong.policy in SEVEN]
    return tuple(Arm(pair.policy, pair.policy, pair.trigger) for pair in pairs)


def compare(
    scenario: Scenario, chosen: Sequence[Arm], seeds: Sequence[int], tell: Tell, trace_arrival_s: Instants | None = None, jobs: int = 1
) -> Comparison:
    """`jobs` runs at a time, each in a process of its own where there are several; what comes out does not depend on it."""
    pairs = [(arm, seed) for seed in seeds for arm in chosen]
    jobs = min(jobs, len(pairs))
    with ExitStack() as stack:
        run = partial(_run, scenario, trace_arrival_s)
        if jobs > 1:
            # Not forked: a process that has threads (of numpy's, say) does not fork well. Ctrl-C is for this one, which ends the others.
            pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=signal, initargs=(SIGINT, SIG_IGN))
            stack.callback(pool.shutdown, cancel_futures=True)
            told = pool.map(run, pairs)
        else:
            told = map(run, pairs)
        runs: dict[str, list[Figures]] = {arm.name: [] for arm in chosen}
        for n, (arm, seed) in enumerate(pairs):
            tell(f"{arm.name}, seed {seed}", n, len(pairs))
            runs[arm.name].append(next(told))
    return Comparison(scenario.name, tuple(seeds), {name: tuple(of_arm) for name, of_arm in runs.items()})


def _run(scenario: Scenario, trace_arrival_s: Instants | None, pair: tuple[Arm, int]) -> Figures:
    arm, seed = pair
    outcome = simulate(scenario, draw_load(scenario, seed, trace_arrival_s), arm.policy, arm.trigger, seed, arm.holding)
    if not outcome.completed.any():
        raise SimulationInputError(f"{scenario.name}: {arm.name} completed no task; give the edges a larger max_queue or a link")
    return figures(outcome, scenario.quality_scale)


def _known(given: Sequence[str], registered: Sequence[str], kind: str, others: Sequence[str] = ()) -> list[str]:
    given, known = [name for one in given for name in (registered if one == "all" else [one])], [*registered, *others]
    for name in given:
        if name not in known:
            hint = nearest(name, known, f"there are {', '.join(known)}")
            raise SimulationInputError(f"{kind} {name!r} is unknown; {hint}")
    if not given or len(set(given)) < len(given):
        raise SimulationInputError(f"{kind}: name each once, and at least one")
    return given
