"""`moedge bench worker`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.bench.headlines import Figures, Headline
from loadgen.cli.console import CommandError, command, in_seconds, print_json, progress, stdout, table
from loadgen.units import in_bytes

if TYPE_CHECKING:
    from loadgen.bench.worker.figures import WorkerFigures
    from loadgen.bench.worker.lengths import Lengths

TARGET_STATIC, TARGET_ALONE = 1.5, 6.0


@command
def worker(
    tasks: Annotated[int, typer.Option(min=1, help="Tasks in a run.")] = 64,
    concurrent: Annotated[int, typer.Option(min=1, help="Tasks at once; also the largest static batch.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="Timed runs of each; the median counts.")] = 3,
    checked: Annotated[int, typer.Option(min=1, help="Tasks whose tokens are compared in float32.")] = 24,
    blocks: Annotated[int, typer.Option(min=2, help="Blocks of encoder and decoder each, every second one sparse.")] = 12,
    width: Annotated[int, typer.Option(min=64, help="d_model, in multiples of 64; experts are four times as wide.")] = 768,
    experts: Annotated[int, typer.Option(min=4, help="Experts in each sparse block, in multiples of 4.")] = 32,
    vocabulary: Annotated[int, typer.Option(min=100, help="Tokens in the vocabulary.")] = 32128,
    lengths: Annotated[
        Path | None,
        typer.Option(help="Take lengths from this JSONL of tasks, or directory of datasets; needs --tokenizer.", metavar="FILE|DIR"),
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Directory of the checkpoint whose tokenizer counts tokens.", metavar="DIR")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of both; 0 is all cores.")] = 0,
    device: options.Device = "cpu",
    seed: Annotated[int, typer.Option(help="Of weights, lengths and token ids.")] = 0,
    json: options.Json = False,
) -> None:
    """Tokens a second of the worker's engine at full size, beside transformers on the same random weights, and latencies."""
    try:
        import torch
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed: pip install 'moedge[worker,dev]'") from error
    from loadgen.bench.sizes import Sizes
    from loadgen.bench.worker.measuring import Options, measure
    from services.model.device import pick_device

    if width % 64 or experts % 4:
        raise CommandError("--width in multiples of 64, --experts in multiples of 4")
    if threads:
        torch.set_num_threads(threads)
    sizes = Sizes(width, 4 * width, 64, width // 64, blocks, experts, vocabulary)
    static_sizes = (*(size for size in (2, 4, 8) if size < concurrent), concurrent)
    chosen = Options(tasks, concurrent, min(checked, tasks), static_sizes, rounds, seed=seed, device=pick_device(device))
    figures = measure(sizes, _lengths(lengths, tokenizer), chosen, progress())
    if json:
        print_json(as_json(figures))
    else:
        _print(figures)


def _lengths(path: Path | None, tokenizer: Path | None) -> Lengths:
    from loadgen.bench.worker.lengths import built_in, of_data

    if path is None:
        return built_in()
    if tokenizer is None:
        raise CommandError("--lengths needs --tokenizer DIR, to count tokens with")
    return of_data(path, tokenizer)


def as_json(figures: WorkerFigures) -> dict[str, object]:
    ratios = {
        "ratio_best_static_batch": figures.ratio_best_static_batch,
        "ratio_one_at_a_time": figures.ratio_one_at_a_time,
        "ratio_oracle": figures.ratio_oracle,
        "processor_ratio_best_static_batch": figures.processor.ratio_best_static_batch,
        "processor_ratio_one_at_a_time": figures.processor.ratio_one_at_a_time,
    }
    return {**asdict(figures), **ratios}


def headlines(figures: Figures) -> Iterator[Headline]:
    yield Headline("x best static batch", figures["ratio_best_static_batch"], TARGET_STATIC, False, "{:.2f}")
    yield Headline("x one at a time", figures["ratio_one_at_a_time"], TARGET_ALONE, False, "{:.2f}")
    yield Headline("tasks of other tokens", figures["num_checked"] - figures["num_equal"], 0, True, "{:.0f}")


def _print(figures: WorkerFigures) -> None:
    console = stdout()
    best, kept, limit, four_bits = figures.best_static, figures.merged, figures.limit, figures.four_bits
    rows = [
        ("ours, bfloat16", f"{figures.tokens_per_s:.1f}", f"{figures.slowest:.1f} to {figures.fastest:.1f}"),
        (f"ours, experts merged to {kept.kept_share:.0%}", f"{kept.tokens_per_s:.1f}", f"{in_bytes(kept.weight_bytes)} of weights"),
        ("ours, experts at 4 bits", f"{four_bits.tokens_per_s:.1f}", f"{in_bytes(four_bits.weight_bytes)} of weights"),
        *((f"transformers, static {s.size}, {s.order}", f"{s.tokens_per_s:.1f}", "best" if s == best else "") for s in figures.static),
        ("transformers, by answers not yet known", f"{figures.oracle_tokens_per_s:.1f}", f"ours {figures.ratio_oracle:.2f} times"),
        ("transformers, one at a time", f"{figures.one_at_a_time_tokens_per_s:.1f}", ""),
    ]
    console.print(table(_title(figures), ("what", "tokens/s", ""), rows))
    console.print(
        f"{figures.ratio_best_static_batch:.2f} times the best static batch{_missed(figures.ratio_best_static_batch, TARGET_STATIC)}, "
        f"{figures.ratio_one_at_a_time:.2f} times one at a time{_missed(figures.ratio_one_at_a_time, TARGET_ALONE)}"
    )
    if not figures.peak_device_bytes:
        console.print(
            f"by processor time {figures.processor.ratio_best_static_batch:.2f} times the best static batch, "
            f"{figures.processor.ratio_one_at_a_time:.2f} times one at a time"
        )
    console.print(
        f"experts at 4 bits: {in_bytes(four_bits.expert_bytes)}, {four_bits.ratio_bfloat16:.2f} times bfloat16, "
        f"{four_bits.ratio_best_static_batch:.2f} times the best static batch; a layer's output within "
        f"{four_bits.layer_difference:.2%} of its weights unpacked"
    )
    console.print(
        f"float32: {figures.num_equal} of {figures.num_checked} tasks with the same tokens, "
        f"{figures.num_overflowed} tokens over transformers' expert capacity"
    )
    console.print(table(f"From submission, {figures.num_concurrent} kept running", ("", "50 %", "95 %", "99 %"), _percentiles(figures)))
    console.print(
        f"limit: {in_bytes(limit.weight_bytes)} of weights touched at {in_bytes(limit.bandwidth_bytes_per_s)}/s, "
        f"{limit.flops / 1e12:.2f} Tflop at {limit.matrix_flops_per_s / 1e9:.0f} Gflop/s: "
        f"{limit.prefill_s + limit.decode_s:.2f} s, {limit.share_reached:.0%} reached"
    )
    console.print(
        f"routing entropy {figures.routing_entropy:.2f} of even; {in_bytes(figures.weight_bytes)} of weights, "
        f"{_peak(figures)}, transformers included"
    )


def _percentiles(figures: WorkerFigures) -> list[tuple[str, ...]]:
    named = {
        "first token": figures.first_token,
        "between tokens": figures.between_tokens,
        "completion": figures.completion,
        "completion, merged": figures.merged.completion,
        "first token, 4 bits": figures.four_bits.first_token,
        "between tokens, 4 bits": figures.four_bits.between_tokens,
        "completion, 4 bits": figures.four_bits.completion,
        "completion, best static batch, from its start": figures.static_completion,
    }
    return [(name, *(in_seconds(value) for value in found.values())) for name, found in named.items()]


def _title(figures: WorkerFigures) -> str:
    return (
        f"{figures.params / 1e9:.2f} billion parameters, {figures.num_tasks} tasks, {figures.num_concurrent} at once, "
        f"{figures.prompt_tokens} prompt and {figures.output_tokens} generated tokens ({figures.lengths})"
    )


def _peak(figures: WorkerFigures) -> str:
    if figures.peak_device_bytes:
        return f"{in_bytes(figures.peak_device_bytes)} at most on the {figures.machine['gpu']}"
    return f"{in_bytes(figures.peak_rss_bytes)} at most in the process"


def _missed(ratio: float, target: float) -> str:
    return "" if ratio >= target else f" (missed: {target:g})"
