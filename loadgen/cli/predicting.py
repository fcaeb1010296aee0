"""What `moedge simulate --from-replay` prints: a live run beside what the simulator predicts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.cli.console import CommandError, narrow_table, print_json, stderr, stdout

if TYPE_CHECKING:
    from loadgen.simulator.prediction import EdgeParts, Pair, Prediction

PARTS = {
    "tasks": ("tasks", 0),
    "travel_s": ("travel s", 3),
    "queue_wait_s": ("wait s", 3),
    "inference_s": ("inference s", 3),
    "quality": ("quality", 3),
    "updates": ("updates", 1),
}


def predict_replay(
    directory: Path, profile: str, triggers: Sequence[str], seeds: Sequence[int], tell: Callable[[str, int, int], None], *, json: bool
) -> None:
    from loadgen.recorded import read_run
    from loadgen.simulator.prediction import predict
    from loadgen.simulator.scenario import profile as profile_of

    if len(triggers) != 1:
        raise CommandError("triggers: a replay ran with one; name that, or leave it out where the stack was started by the replay")
    run = read_run(directory)
    if run.merging is None:
        stderr().print(f"[yellow]the run does not tell its merge trigger: {triggers[0]} is assumed; --triggers names another[/yellow]")
    predicted = predict(run, profile_of(profile), triggers[0], seeds, tell)
    if json:
        print_json(predicted.as_json())
    else:
        _print(predicted, directory)


def _print(predicted: Prediction, directory: Path) -> None:
    console = stdout()
    left_out = f", {predicted.num_left_out} that were not completed left out" if predicted.num_left_out else ""
    console.print(f"{directory}: {predicted.num_tasks} tasks{left_out}; {predicted.policy} with {predicted.trigger}")
    rows = [
        _row("process time, s", predicted.process_time_s, 1),
        _row("total quality", predicted.total_quality, 1),
        *(_row(f"quality of {task_type}", pair, 3) for task_type, pair in predicted.mean_quality_by_type.items()),
    ]
    console.print(f"\nsimulated: mean of {len(predicted.seeds)} seeds")
    console.print(narrow_table(("figure", "live", "simulated", "error"), rows))
    parts = [
        (edge_id, which, *_cells(of_edge))
        for edge_id, (live, simulated) in predicted.edges.items()
        for which, of_edge in (("live", live), ("simulated", simulated))
    ]
    console.print("\nmeans a task, by edge")
    console.print(narrow_table(("edge", "run", *(title for title, _ in PARTS.values())), parts, text_columns=2))
    console.print(f"travel: the links of the edges file, and {predicted.call_s * 1000:.1f} ms a task that calls took in this run")


def _row(name: str, pair: Pair, digits: int) -> tuple[str, str, str, str]:
    return name, f"{pair.live:.{digits}f}", f"{pair.simulated:.{digits}f}", f"{pair.error:+.1%}"


def _cells(parts: EdgeParts) -> list[str]:
    return [f"{getattr(parts, name):.{digits}f}" for name, (_, digits) in PARTS.items()]
