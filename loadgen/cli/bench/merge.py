"""`moedge bench merge`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench.headlines import Figures, Headline
from loadgen.cli.console import command, in_seconds, print_json, progress, stdout, table
from loadgen.cli.places import model_or_demo, tasks_or_toy
from loadgen.units import in_bytes

if TYPE_CHECKING:
    from loadgen.bench.merge_figures import MergeFigures, RoutingFigures

TARGETS = {"remerge_s": 5.0, "ratio_align_again": 20.0, "ratio_same_alignment": 3.0, "max_abs_diff": 1e-5}
TOLD = {
    "remerge_s": "seconds to plan, merge and sync blobs:",
    "ratio_align_again": "times as fast as plain that aligns again:",
    "ratio_same_alignment": "times as fast as plain of the same alignment:",
    "max_abs_diff": "largest difference:",
}


@command
def merge(
    scratch: Annotated[Path, typer.Option(help="Folder for the checkpoint and what is prepared from it: 18 GB.", metavar="DIR")] = Path(
        "out/bench-merge"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the folder for another run, which then prepares nothing again.")] = False,
    budget_bytes: Annotated[int, typer.Option(min=1, help="Memory for weights of the merged model.")] = 2_000_000_000,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of each; the median counts.")] = 3,
    model: options.Model = None,
    tasks: options.Tasks = None,
    d_model: Annotated[int, typer.Option(min=2, help="Width of the vectors between layers.")] = 768,
    d_ff: Annotated[int, typer.Option(min=2, help="Hidden units of an expert.")] = 3072,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads, 64 wide.")] = 12,
    blocks: Annotated[int, typer.Option(min=2, help="Blocks of encoder and decoder each; every second has experts.")] = 12,
    experts: Annotated[int, typer.Option(min=2, help="Experts of a layer.")] = 32,
    vocabulary: Annotated[int, typer.Option(min=2, help="Tokens in the vocabulary.")] = 32128,
    threads: options.Threads = 2,
    json: options.Json = False,
) -> None:
    """Re-merging a model of google/switch-base-32's size, random weights, to a byte budget, beside M-SMoE written down plainly.

    --model and --tasks name the trained model whose routing of its calibration items is used beside even routing.
    """
    import torch

    from loadgen.bench.merge import measure, remove
    from loadgen.bench.merge_figures import MergeOptions
    from loadgen.bench.sizes import Sizes

    torch.set_num_threads(threads)
    sizes = Sizes(d_model, d_ff, num_heads=heads, num_blocks=blocks, num_experts=experts, vocab_size=vocabulary)
    trained = Path(model_or_demo(model))
    figures = measure(
        MergeOptions(scratch, sizes, budget_bytes, rounds, trained, tasks_or_toy(tasks, model)),
        progress(),
    )
    if not keep:
        remove(scratch)
    if json:
        print_json(as_json(figures))
    else:
        _print(figures)


def as_json(figures: MergeFigures) -> dict[str, object]:
    """Even routing first, because there every expert is read; `routings` has both."""
    routings = {name: _routing_json(routing) for name, routing in figures.routings.items()}
    return {
        **{key: value for key, value in routings["even"].items() if key != "next_mix"},
        "budget_bytes": figures.budget_bytes,
        "full_bytes": figures.full_bytes,
        "prepare_experts_s": figures.prepared.experts_s,
        "prepare_align_s": figures.prepared.align_s,
        "prepare_pairs": figures.prepared.num_pairs,
        "prepare_peak_rss_bytes": figures.prepared.peak_rss_bytes,
        "bandwidth_bytes_per_s": figures.bandwidth_bytes_per_s,
        "machine": dict(figures.machine),
        "sizes": {**asdict(figures.sizes), "seed": figures.seed},
        "routings": routings,
    }


def headlines(figures: Figures) -> Iterator[Headline]:
    yield Headline("re-merge, s", figures["remerge_s"], TARGETS["remerge_s"], True, "{:.1f}")
    for what, key in (("aligns again", "ratio_align_again"), ("as aligned", "ratio_same_alignment")):
        yield Headline(f"x plain, {what}", figures[key], TARGETS[key], False, "{:,.1f}")
    yield Headline("largest difference", figures["max_abs_diff"], TARGETS["max_abs_diff"], True, "{:.1e}")


def _routing_json(routing: RoutingFigures) -> dict[str, object]:
    return {
        **asdict(routing),
        "ratio_same_alignment": routing.ratio_same_alignment,
        "ratio_in_place": routing.ratio_in_place,
        "ratio_align_again": routing.ratio_align_again,
        "share_of_limit": routing.share_of_limit,
    }


def _print(figures: MergeFigures) -> None:
    console = stdout()
    names = tuple(figures.routings)
    columns = [_column(routing) for routing in figures.routings.values()]
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    title = (
        f"Re-merge to {in_bytes(figures.budget_bytes)} of {in_bytes(figures.full_bytes)}, float32, {figures.machine['num_threads']} threads"
    )
    console.print(table(title, ("routing", *names), rows))
    prepared = figures.prepared
    console.print(
        f"Prepared once for the base model: experts {in_seconds(prepared.experts_s)} (peak {in_bytes(prepared.peak_rss_bytes)}), "
        f"{prepared.num_pairs} pairs aligned in {in_seconds(prepared.align_s)}. "
        f"Memory moves {in_bytes(figures.bandwidth_bytes_per_s)} a second."
    )
    for name, routing in figures.routings.items():
        told = _routing_json(routing)
        for key, target in TARGETS.items():
            value = told[key]
            assert isinstance(value, float)
            missed = value < target if key.startswith("ratio") else value > target
            if missed:
                console.print(f"[yellow]{name}: {TOLD[key]} {value:.3g}, the target is {target:g}[/yellow]")


def _column(routing: RoutingFigures) -> dict[str, str]:
    column = {
        "experts kept, experts read": f"{routing.experts_kept}, {routing.experts_read}",
        "plan, merge, blobs synced": in_seconds(routing.remerge_s),
        "  slowest": in_seconds(routing.slowest_remerge_s),
        "  page cache dropped": in_seconds(routing.cold_s),
        "  peak memory": in_bytes(routing.peak_rss_bytes),
        "plan": in_seconds(routing.plan_s),
        "plan and merge, in memory": in_seconds(routing.in_memory_s),
        "  plain, same alignment": f"{in_seconds(routing.same_alignment_s)}, {routing.ratio_same_alignment:.1f} x",
        "  plain in a tighter loop": f"{in_seconds(routing.in_place_s)}, {routing.ratio_in_place:.1f} x",
        "  plain, aligns again (scaled)": f"{in_seconds(routing.align_again_s)}, {routing.ratio_align_again:,.0f} x",
        "  memory's limit": f"{in_seconds(routing.limit_s)}, {routing.share_of_limit:.0%} reached",
        "largest difference": f"{routing.max_abs_diff:.1e}{'' if routing.groups_agree else ', other groups'}",
    }
    after = routing.next_mix
    column["a fifth of tasks moved: groups"] = f"{after.changed_groups} of {after.num_groups} new" if after else "-"
    column["  pairs not prepared"] = f"{after.pairs_missing} in {in_seconds(after.align_s)}" if after else "-"
    column["  then plan, merge, blobs synced"] = in_seconds(after.remerge_s) if after else "-"
    return column
