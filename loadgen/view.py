"""Live views of a replay: a rich table with a progress bar on a terminal, plain lines otherwise, or nothing. They measure nothing."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.tally import Progress

PLAIN_EVERY_S = 5.0
_STATE_STYLES = {"ready": "green", "updating": "yellow", "draining": "yellow", "unreachable": "red"}


class ReplayView(Protocol):
    """Shown from another thread than the sender's; `show` may be slow, a replay never waits for it."""

    every_s: float

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def show(self, progress: Progress) -> None: ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


class QuietView:
    """Shows nothing (`--json`)."""

    every_s = PLAIN_EVERY_S

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def show(self, progress: Progress) -> None:
        return None

    def say(self, text: str) -> None:
        return None


class PlainView(QuietView):
    """A line every few seconds, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def show(self, progress: Progress) -> None:
        versions = " ".join(f"{row.sample.edge_id}={row.sample.version[:8]}({row.sample.outstanding_tasks})" for row in progress.edges)
        self._console.print(
            f"{progress.name} {max(progress.elapsed_s, 0.0):5.0f}s sent {progress.sent}/{progress.planned} completed {progress.completed} "
            f"failed {progress.failed} rejected {progress.rejected} quality {_number(progress.quality)} "
            f"cost {_number(progress.positive_cost)} {versions}",
            highlight=False,
            soft_wrap=True,
        )

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A progress bar, the current mix and a table of the edges, redrawn in place."""

    every_s = 0.5

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def show(self, progress: Progress) -> None:
        with self._lock:
            if self._live is not None:
                self._live.update(picture(progress), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


def view_for(console: Console, *, quiet: bool) -> ReplayView:
    """The view that fits: none for `--json`, live on a terminal, plain lines elsewhere."""
    if quiet:
        return QuietView()
    return LiveView(console) if console.is_terminal else PlainView(console)


def picture(progress: Progress) -> RenderableType:
    """The live view at one instant."""
    return Group(_counts(progress), _worth(progress), _bar(progress), _mix_line(progress), _edge_table(progress))


def _counts(progress: Progress) -> Text:
    return Text.assemble(
        (progress.name, "bold"),
        f"   sent {progress.sent}/{progress.planned}   in flight {progress.in_flight}   ",
        (f"completed {progress.completed}", "green"),
        "   ",
        (f"failed {progress.failed}", "red" if progress.failed else "dim"),
        "   ",
        (f"rejected {progress.rejected}", "red" if progress.rejected else "dim"),
        no_wrap=False,
        overflow="fold",
    )


def _worth(progress: Progress) -> Text:
    cost = _number(progress.positive_cost) + " s" * (progress.positive_cost is not None)
    text = Text.assemble(
        "positive cost ", (cost, "bold"), "   quality ", (_number(progress.quality), "bold"), no_wrap=False, overflow="fold"
    )
    if progress.late_share > 0.01:
        text.append(f"   {progress.late_share:.1%} sent late", style="bold red")
    return text


def _bar(progress: Progress) -> Table:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=1)
    table.add_column(justify="right", no_wrap=True)
    elapsed_s = min(max(progress.elapsed_s, 0.0), progress.planned_s)
    table.add_row(ProgressBar(total=max(progress.planned_s, 1e-9), completed=elapsed_s), f"{elapsed_s:.0f} of {progress.planned_s:.0f} s")
    return table


def _mix_line(progress: Progress) -> Text:
    shares = sorted(progress.mix.items(), key=lambda pair: -pair[1])
    return Text(
        "mix   " + "   ".join(f"{name} {share:.0%}" for name, share in shares if share > 0.005), style="dim", no_wrap=False, overflow="fold"
    )


def _edge_table(progress: Progress) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("edge")
    table.add_column("state")
    table.add_column("version")
    for name in ("queue", "predicted wait", "updates", "tasks served", "quality"):
        table.add_column(name, justify="right")
    for row in progress.edges:
        sample = row.sample
        table.add_row(
            sample.edge_id,
            Text(sample.state, style=_STATE_STYLES.get(sample.state, "")),
            sample.version[:8],
            str(sample.outstanding_tasks),
            f"{sample.predicted_queue_wait_s:.2f} s",
            str(sample.updates),
            str(row.tasks),
            _number(row.quality),
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
