"""Runs every policy with every trigger on the same loads, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from signal import SIG_IGN, SIGINT, signal
from typing import Literal

from loadgen.simulator.errors import SimulationInputError
from loadgen.simulator.figures import Figures, Interval, figures, interval, over_seeds
from loadgen.simulator.holdings import Holding
from loadgen.simulator.load import draw_load
from loadgen.simulator.runtimes import swap_s
from loadgen.simulator.scenario import Scenario
from loadgen.simulator.simulation import ORACLE, simulate
from services.core import defaults
from services.core.baselines import PUBLISHED
from services.core.merging import triggers
from services.core.naming import nearest
from services.core.offload import policies
from services.core.workload.arrivals import Instants

Tell = Callable[[str, int, int], None]  # what runs, how many runs are done, of how many


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy with a trigger, over what the edges hold; `name` is the policy's where all arms have the same trigger. Options given here
    go before a scenario's."""

    name: str
    policy: str
    trigger: str
    holding: Holding = "merged"
    policy_options: Mapping[str, object] = field(default_factory=dict)
    trigger_options: Mapping[str, object] = field(default_factory=dict)


OURS = Arm("ours", defaults.POLICY, defaults.TRIGGER)  # what moedge does
CLAIRVOYANT = Arm("clairvoyant", "onto", "clairvoyant")  # told when traffic changes: regrets are against it
QUANTISED = Arm("quantised", "onto", "never", "quantised")  # the two rivals at equal bytes that need no adaptation
STATIC = Arm("static", "onto", "never", "static")
OWN = (OURS, CLAIRVOYANT, QUANTISED, STATIC)  # arms with a trigger of their own
Form = Literal["paper", "strong"]  # of the seven baselines: `core/baselines.py`
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


def arms(policy_names: Sequence[str], trigger_names: Sequence[str], form: Form = "strong") -> tuple[Arm, ...]:
    """`all` policies: every name that is registered, the seven with the update rule of this form, then those of `OWN` and `oracle`,
    which can be named alone too. Those of `OWN` have a trigger of their own; the seven run with the trigger given when named alone."""
    given = [name.replace("-", "_") for name in policy_names]
    rules = _known(trigger_names, triggers.names(), "trigger")
    chosen = _known(given, [*policies.names(), *(arm.name for arm in OWN)], "policy", (ORACLE,))
    if "all" in given and ORACLE not in chosen:
        chosen.append(ORACLE)
    seven = {arm.policy: arm for arm in published(form)}
    own = {arm.name: arm for arm in ([*OWN, *seven.values()] if "all" in given and len(rules) == 1 else OWN)}
    made = [own.get(p) or _with_rule(seven.get(p, Arm(p, p, t)), t, len(rules) > 1) for p in chosen for t in rules]
    return tuple({arm.name: arm for arm in made}.values())


def published(form: Form = "strong") -> tuple[Arm, ...]:
    """The seven baselines of the paper in one form: their dispatch, the update rule that goes with it, and what their servers hold.

    In the paper's form QoS-Quant and MoE-Load run on top of a merged model in the memory that holds it: all of its experts stay resident in
    16 bits, so their servers are servers of a merged model. Multi-MoE's hold its variants in both forms.
    """
    made = []
    for baseline in PUBLISHED:
        pair = baseline.paper if form == "paper" else baseline.strong
        if pair.policy in SEVEN:
            holding: Holding = "merged" if form == "paper" and baseline.runtime != "multi_model" else baseline.runtime
            made.append(Arm(pair.policy, pair.policy, pair.trigger, holding, pair.policy_options, pair.trigger_options))
    return tuple(made)


def _with_rule(arm: Arm, trigger: str, several: bool) -> Arm:
    options = arm.trigger_options if arm.trigger == trigger else {}
    return replace(arm, name=f"{arm.policy}+{trigger}" if several else arm.name, trigger=trigger, trigger_options=options)


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
    load = draw_load(scenario, seed, trace_arrival_s)
    outcome = simulate(with_options(scenario, arm), load, arm.policy, arm.trigger, seed, arm.holding)
    if not outcome.completed.any():
        raise SimulationInputError(f"{scenario.name}: {arm.name} completed no task; give the edges a larger max_queue or a link")
    return figures(outcome, scenario.quality_scale)


def with_options(scenario: Scenario, arm: Arm) -> Scenario:
    """The scenario in which `arm` runs: its own options before the scenario's."""
    told = {"swap_s": swap_s(scenario)} if arm.holding == "multi_model" else {}
    policies_options = {**scenario.policies, arm.policy: {**told, **scenario.policies.get(arm.policy, {}), **arm.policy_options}}
    triggers_options = {**scenario.triggers, arm.trigger: {**scenario.triggers.get(arm.trigger, {}), **arm.trigger_options}}
    return replace(scenario, policies=policies_options, triggers=triggers_options)


def _known(given: Sequence[str], registered: Sequence[str], kind: str, others: Sequence[str] = ()) -> list[str]:
    given, known = [name for one in given for name in (registered if one == "all" else [one])], [*registered, *others]
    for name in given:
        if name not in known:
            hint = nearest(name, known, f"there are {', '.join(known)}")
            raise SimulationInputError(f"{kind} {name!r} is unknown; {hint}")
    if not given or len(set(given)) < len(given):
        raise SimulationInputError(f"{kind}: name each once, and at least one")
    return given
