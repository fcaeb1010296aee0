"""`moedge simulate`: policies and merge triggers on the same load in virtual time, through the engines that run live."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import CommandError, command, narrow_table, print_json, stderr, stdout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loadgen.simulator.comparison import Arm, Comparison
    from loadgen.simulator.figures import Interval

# A few columns a table, so that no cell is broken in 80 characters.
TABLES = (
    {"positive_cost": "positive cost s", "weighted_cost": "eq. (1) s", "table_cost": "table cost s"},
    {"process_time_s": "process time s", "completion_p50_s": "p50 s", "completion_p99_s": "p99 s"},
    {"mean_quality": "quality", "updates": "updates", "downtime_s": "downtime s", "rejected": "rejected"},
)
COUNTS = ("updates", "downtime_s", "rejected")
LEGEND = """\
positive cost: mean over tasks of completion time + alpha · quality scale ·
  (1 - quality), so less is better; quality scale: seconds a full point is worth
eq. (1): the paper's weighted cost, last completion - first arrival - sum of
  alpha · quality scale · quality; it may be negative
table cost: process time - 0.05 · total quality, as in the paper's tables
process time: sum of completion times, and of downtimes
p50, p99: completion time that half, 99 % of tasks do not exceed
downtime: how long edges computed nothing because of updates, all together"""


SCENARIOS = ", ".join(sorted(path.stem for path in (Path(__file__).parents[1] / "scenarios").glob("*.toml")))


class Form(StrEnum):
    """Of the paper's baselines."""

    paper = "paper"
    strong = "strong"


@command
def simulate(
    scenario: Annotated[
        str | None,
        typer.Argument(help=f"{SCENARIOS}; or a TOML file such as those in loadgen/scenarios.", metavar="NAME|FILE", show_default=False),
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help=f"With commas between. Offload policies: {options.POLICIES}; all. With a trigger of their own: ours (onto + portfolio), "
            "quantised (unmerged model at few bits) and static (one merge for the mean mix on every edge), which never update; "
            "clairvoyant, which is told when the mix changes. oracle: onto told what others predict."
        ),
    ] = "ours,onto,random",
    triggers: Annotated[str, typer.Option(help=f"Merge triggers with commas between: {options.TRIGGERS}; all.")] = "jtom",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each; every policy gets the same load of a seed.")] = 3,
    first_seed: Annotated[int, typer.Option(min=0, help="Seeds count up from here.")] = 0,
    duration: Annotated[
        float | None, typer.Option(callback=options.above_zero, help="Virtual time, instead of the scenario's.", metavar="SECONDS")
    ] = None,
    quality_scale: Annotated[
        float | None, typer.Option(min=0.0, help="What a full point of quality is worth, instead of the scenario's.", metavar="SECONDS")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Arrivals from a trace (Azure LLM 2023, Mooncake, BurstGPT; .gz or plain).", metavar="FILE")
    ] = None,
    from_replay: Annotated[
        Path | None,
        typer.Option(help="Instead of a scenario: predict the live run that moedge replay --out wrote here, and compare.", metavar="DIR"),
    ] = None,
    profile: Annotated[str, typer.Option(help="With --from-replay: profile of the model that ran.", metavar="NAME|FILE")] = "demo",
    jobs: Annotated[int, typer.Option(min=0, help="Runs at a time, each on a core of its own; 0: as many as there are cores.")] = 0,
    forms: Annotated[Form, typer.Option(help="The paper's baselines as published, or as strong as is reasonable here.")] = Form.strong,
    json: options.Json = False,
) -> None:
    """Replay a scenario's load in virtual time.

    Prints mean and 95 % interval over seeds. The same scenario and seeds give the same bytes.
    """
    from loadgen.simulator.comparison import arms, compare
    from loadgen.simulator.scenario import scenario as read_scenario

    console = stderr()

    def tell(what: str, done: int, total: int) -> None:
        console.print(f"[dim]{done / total:4.0%}  {what}[/dim]")

    if (scenario is None) == (from_replay is None):
        raise CommandError("scenario: name one, or give --from-replay DIR instead")
    if scenario is None:
        from loadgen.cli.predicting import predict_replay

        assert from_replay is not None
        predict_replay(from_replay, profile, _names(triggers), range(first_seed, first_seed + seeds), tell, json=json)
        return
    overrides = {name: value for name, value in (("duration_s", duration), ("quality_scale", quality_scale)) if value is not None}
    read = read_scenario(scenario, **overrides)
    arrival_s = None
    if trace is not None:
        from loadgen.traces import read_trace

        if read.load.arrivals != "trace":
            raise CommandError(f"trace: scenario {read.name} draws its own arrivals; use the scenario trace, or set load.arrivals")
        arrival_s = read_trace(trace).arrival_s
    elif read.load.arrivals == "trace":
        raise CommandError("load.arrivals is trace: give the file with --trace")
    chosen = arms(_names(policies), _names(triggers), forms.value)
    compared = compare(read, chosen, range(first_seed, first_seed + seeds), tell, arrival_s, jobs or os.cpu_count() or 1)
    if json:
        print_json(as_json(compared, chosen, forms))
    else:
        _print(compared, read.about)


def as_json(compared: Comparison, arms: Sequence[Arm], forms: Form) -> dict[str, object]:
    from loadgen.simulator.comparison import CLAIRVOYANT, OURS
    from loadgen.simulator.figures import as_json as intervals

    told: dict[str, dict[str, object]] = {}
    names = [arm.name for arm in arms]
    for arm in arms:
        name = arm.name
        told[name] = {"policy": arm.policy, "trigger": arm.trigger, "holding": arm.holding, **intervals(compared.summary(name))}
        for key, other in (("regret", CLAIRVOYANT.name), ("above_ours", OURS.name)):
            if other in names:
                told[name][key] = asdict(compared.paired(name, other, "positive_cost"))
    ours, best = OURS.name if OURS.name in names else None, compared.best_baseline()
    about = {
        "scenario": compared.scenario,
        "seeds": list(compared.seeds),
        "forms": forms.value,
        "ours": ours,
        "best_baseline": best,
    }
    return {**about, "policies": told}


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _print(compared: Comparison, about: str) -> None:
    summaries = {name: compared.summary(name) for name in compared.runs}
    best = sorted(summaries, key=lambda name: summaries[name]["positive_cost"].mean)
    baseline = compared.best_baseline()
    console = stdout()
    tasks = next(iter(summaries.values()))["tasks"].mean
    console.print(f"{compared.scenario}: {about}" if about else compared.scenario)
    seeds = len(compared.seeds)
    of_seeds = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± half of the 95 % interval"
    console.print(f"{tasks:.0f} tasks; {of_seeds}; least positive cost first")
    for columns in TABLES:
        rows = [(name, *(_cell(summaries[name][figure], figure in COUNTS) for figure in columns)) for name in best]
        console.print()
        console.print(narrow_table(("policy", *columns.values()), rows))
    console.print(f"\n[dim]{LEGEND}[/dim]")
    if baseline is not None and "ours" in summaries:
        saved = 1.0 - summaries["ours"]["positive_cost"].mean / summaries[baseline]["positive_cost"].mean
        apart = compared.paired("ours", baseline, "positive_cost")
        told = f"{abs(saved):.1%} {'less' if saved >= 0 else 'more'}"
        console.print(
            f"ours costs {told} than {baseline}, the best of the paper's baselines among these: {_cell(apart)} s a task, paired by seed"
        )


def _cell(value: Interval, counted: bool = False) -> str:
    largest = max(abs(value.mean), value.ci95)
    digits = 0 if largest >= 1000 else 1 if largest >= 10 or counted else 3
    return f"{value.mean:.{digits}f}" + (f" ±{value.ci95:.{digits}f}" if value.ci95 > 0 else "")
