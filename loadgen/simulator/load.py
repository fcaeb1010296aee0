"""Every task of a run as columns, drawn before the run: equal for every policy and trigger of the same scenario and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from loadgen.simulator.errors import ScenarioError
from loadgen.simulator.scenario import LoadOptions, Scenario
from services.core.workload.arrivals import Instants, bursty, from_trace, poisson
from services.core.workload.mixes import DriftingMix, MixPhase

MIX_STEP_S = 1.0  # a mix that blends is taken to be constant for so long

Whole = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """(num_tasks,) each, by arrival. `region` and `task_type` index `regions` and `task_types`."""

    task_types: tuple[str, ...]
    regions: tuple[str, ...]
    at_s: Instants
    user: Whole
    region: Whole
    task_type: Whole
    alpha: NDArray[np.float64]
    prompt_bytes: Whole
    prompt_tokens: Whole
    output_tokens: Whole
    score_draw: NDArray[np.float64]  # U[0, 1): an answer scores 1 where it lies below the quality
    call_s: NDArray[np.float64] | None = None  # what a task takes beside links, wait and computing, half each way; no prediction knows

    def __len__(self) -> int:
        return len(self.at_s)


def draw_load(scenario: Scenario, seed: int, trace_arrival_s: Instants | None = None) -> Load:
    """Generators are separate, so that another rate does not change the lengths of the first tasks."""
    options, model, duration_s = scenario.load, scenario.model, scenario.duration_s
    rngs = [np.random.default_rng([seed, n]) for n in range(5)]
    at_s = _arrivals(options, duration_s, rngs[0], trace_arrival_s)
    num = len(at_s)
    if num == 0:
        raise ScenarioError("load: no task would arrive; raise rate_per_s or duration_s")
    user = rngs[1].integers(options.users, size=num)
    homes = np.arange(options.users) % len(scenario.regions)
    task_types, types = model.task_types, np.zeros(num, dtype=np.int64)
    draw = rngs[2].random(num)
    for home in range(len(scenario.regions)):
        of_home = homes[user] == home
        mix = _mix(scenario, scenario.regions[home])
        types[of_home] = _types(mix, task_types, at_s[of_home], draw[of_home])
    prompt_bytes, prompt_tokens, output_tokens = (np.zeros(num, dtype=np.int64) for _ in range(3))
    for n, task_type in enumerate(task_types):
        of_type = types == n
        lengths = model.lengths(task_type, int(of_type.sum()), rngs[3])
        prompt_bytes[of_type], prompt_tokens[of_type] = lengths.prompt_bytes, lengths.prompt_tokens
        output_tokens[of_type] = np.clip(lengths.output_tokens, 1, scenario.max_tokens)
    alpha, score_draw = 1.0 - rngs[4].random(num), rngs[4].random(num)
    region = _regions(options, homes, user, at_s, len(scenario.regions), rngs[4])
    return Load(task_types, scenario.regions, at_s, user, region, types, alpha, prompt_bytes, prompt_tokens, output_tokens, score_draw)


def _arrivals(options: LoadOptions, duration_s: float, rng: np.random.Generator, trace_arrival_s: Instants | None) -> Instants:
    rate = options.rate_per_s
    match options.arrivals:
        case "trace":
            if trace_arrival_s is None:
                raise ScenarioError("load.arrivals is trace: give the file with --trace")
            span_s = float(trace_arrival_s[-1] - trace_arrival_s[0])
            played = from_trace(trace_arrival_s, max(rate * span_s / len(trace_arrival_s), 1e-9), duration_s)
            return played
        case "bursty":
            return bursty(
                rate,
                duration_s,
                rng,
                burst_ratio=options.burst_ratio,
                burst_share=options.burst_share,
                mean_burst_s=options.mean_burst_s,
            )
        case "diurnal":
            at_s = poisson(rate * (1.0 + options.amplitude), duration_s, rng)
            wanted = 1.0 + options.amplitude * np.sin(2.0 * np.pi * at_s / options.period_s)
            return at_s[rng.random(len(at_s)) * (1.0 + options.amplitude) < wanted]
        case _:
            return poisson(rate, duration_s, rng)


def _mix(scenario: Scenario, region: str) -> DriftingMix:
    phases = [phase for phase in scenario.load.phases if phase.region in ("", region)]
    if not phases:
        return DriftingMix.constant(dict.fromkeys(scenario.model.task_types, 1.0))
    try:
        told = tuple(MixPhase(phase.start * scenario.duration_s, phase.mix) for phase in phases)
        return DriftingMix(told, scenario.load.blend_s)
    except ValueError as error:
        raise ScenarioError(f"load.phases of {region or 'all regions'}: {error}") from error


def _types(mix: DriftingMix, task_types: Sequence[str], at_s: Instants, draw: NDArray[np.float64]) -> Whole:
    """A type for each task, from the mix at its instant."""
    if not len(at_s):
        return np.zeros(0, dtype=np.int64)
    blending = mix.blend_s > 0.0 and len(mix.phases) > 1
    grid = np.arange(0.0, float(at_s[-1]) + MIX_STEP_S, MIX_STEP_S) if blending else np.zeros(1)
    starts = np.unique(np.concatenate([[0.0], grid, np.array(mix.changes())]))
    shares = np.array([[mix.at(float(start)).get(t, 0.0) for t in task_types] for start in starts])
    cumulative = np.cumsum(shares, axis=1)
    row = cumulative[np.searchsorted(starts, at_s, side="right") - 1]
    drawn: Whole = np.minimum((draw[:, None] * row[:, -1:] >= row).sum(axis=1), len(task_types) - 1).astype(np.int64)
    return drawn


def _regions(options: LoadOptions, homes: Whole, user: Whole, at_s: Instants, num_regions: int, rng: np.random.Generator) -> Whole:
    """Where each user is at each task: at home, or after moves at exponential times to another region at random."""
    region: Whole = homes[user]
    if options.moves_every_s <= 0.0 or num_regions < 2:
        return region
    last_s = float(at_s[-1])
    for number in range(options.users):
        moves = np.cumsum(rng.exponential(options.moves_every_s, size=int(4 * last_s / options.moves_every_s) + 16))
        places = np.concatenate([[homes[number]], (homes[number] + np.cumsum(rng.integers(1, num_regions, size=len(moves)))) % num_regions])
        of_user = user == number
        region[of_user] = places[np.searchsorted(moves, at_s[of_user], side="right")]
    return region
