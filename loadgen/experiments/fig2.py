"""Fig. 2: how often each expert is chosen, by layer and task type, and how far types are apart. From measured profiles."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from loadgen.experiments import Experiment
from loadgen.experiments._profiles import Profile, profiles
from loadgen.reproduce.context import Context
from loadgen.reproduce.rules import at_every_point, holds
from loadgen.reproduce.values import Cell, Claim, Heat, Plot, Result, Table
from services.core.baselines import PAPER_JTOM
from services.core.merging.shift import variation

THRESHOLD = float(str(PAPER_JTOM["threshold"]))  # g: what JTOM calls a shift
DOMINANT = 0.25  # of a layer's experts


def run(context: Context) -> Result:
    tables, plots = [], []
    apart: dict[tuple[str, str, str], float] = {}
    dominance: dict[tuple[str, str], float] = {}
    for profile in profiles():
        plots.append(_heat_maps(profile))
        for one, other in combinations(profile.task_types, 2):
            apart[profile.name, one, other] = float(variation(profile.frequencies(one), profile.frequencies(other)).mean())
        dominance |= {(profile.name, t): _dominance(profile, t) for t in profile.task_types}
        tables.append(_distances(profile, apart))
    return Result(_findings(apart, dominance), tables, plots, _claims(apart, dominance))


def _heat_maps(profile: Profile) -> Plot:
    num_layers, num_experts = profile.frequencies(profile.task_types[0]).shape
    panels = tuple(
        Heat(
            t,
            "expert",
            "MoE layer",
            tuple(str(n) for n in range(num_layers)),
            tuple(str(n) for n in range(num_experts)),
            tuple(tuple(float(value) for value in row) for row in profile.frequencies(t)),
        )
        for t in profile.task_types
    )
    caption = f"The unmerged model: {num_layers} layers, {num_experts} experts in each. Bright: chosen often."
    return Plot(f"activations_{profile.name}", f"Activation frequencies by task type, profile {profile.name}", caption, panels)


def _distances(profile: Profile, apart: dict[tuple[str, str, str], float]) -> Table:
    def of(one: str, other: str) -> Cell:
        pair = sorted((one, other))
        return 0.0 if one == other else round(apart[profile.name, pair[0], pair[1]], 3)

    rows = tuple((one, *(of(one, other) for other in profile.task_types)) for one in profile.task_types)
    note = "Total variation between activation frequencies, mean over layers: 0 is equal, 1 shares no expert."
    return Table(
        f"variation_{profile.name}", f"How far task types are apart, profile {profile.name}", ("", *profile.task_types), rows, note
    )


def _dominance(profile: Profile, task_type: str) -> float:
    """Share of the choices that go to the most chosen quarter of each layer's experts, mean over layers."""
    frequencies = np.sort(profile.frequencies(task_type), axis=1)[:, ::-1]
    return float(frequencies[:, : round(DOMINANT * frequencies.shape[1])].sum(axis=1).mean())


def _findings(apart: dict[tuple[str, str, str], float], dominance: dict[tuple[str, str], float]) -> list[str]:
    least, most = min(apart.values()), max(apart.values())
    lowest, highest = min(dominance.values()), max(dominance.values())
    return [
        f"Between two task types the total variation is {least:.2f} to {most:.2f}, where JTOM calls {THRESHOLD:g} a shift.",
        f"The most chosen quarter of a layer's experts gets {lowest:.0%} to {highest:.0%} of a type's tokens.",
    ]


def _claims(apart: dict[tuple[str, str, str], float], dominance: dict[tuple[str, str], float]) -> list[Claim]:
    least = min(apart.values())
    differ = holds(least >= THRESHOLD, f"reproduced: every two task types are at least {THRESHOLD:g} (JTOM's g) apart in total variation")
    few = at_every_point(sum(share > 0.5 for share in dominance.values()), len(dominance))
    return [
        Claim(
            "types-differ",
            "Fig. 2",
            "task types activate different experts",
            "seen in heat maps, no figure",
            f"total variation {least:.2f} to {max(apart.values()):.2f} over {len(apart)} pairs",
            differ.verdict,
            differ.rule,
            headline=False,
        ),
        Claim(
            "few-dominate",
            "Fig. 2, Sec. III",
            "few experts of a layer are dominant for a task",
            "seen in heat maps, no figure",
            f"a quarter of the experts gets {min(dominance.values()):.0%} or more, {len(dominance)} task types",
            few.verdict,
            few.rule + " (a point is a task type whose most chosen quarter gets more than half)",
        ),
    ]


EXPERIMENT = Experiment("Fig. 2: who activates which experts", "Activation frequencies of the unmerged model, by task type.", run)
