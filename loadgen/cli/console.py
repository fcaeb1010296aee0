"""What every command shares: exit codes, one clear line for each known error, tables for people and JSON for programs.

Knows which errors mean bad input and which an unreachable target; prints no traceback for either. Bugs keep their traceback.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

P = ParamSpec("P")
R = TypeVar("R")


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1  # it ran, and the result is a failure
    BAD_INPUT = 2
    UNREACHABLE = 3
    INTERRUPTED = 130


class CommandError(Exception):
    """Ends a command with one line on stderr."""

    def __init__(self, message: str, exit_code: ExitCode = ExitCode.BAD_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps a command so that errors of the domain become a line and an exit code, and Ctrl-C exits 130.

    Its help is the docstring with a line for each paragraph: typer would break lines where the source does.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # What the C core of gRPC has to say beside the errors it raises is noise to the user of a command.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            return function(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:  # the top of the process: known errors end in a line, bugs in a traceback
            ending = _ending_of(error)
            if ending is None:
                raise
            message, exit_code = ending
            for line in message.splitlines() or [type(error).__name__]:
                typer.echo(f"moedge: {line}", err=True)
            raise typer.Exit(exit_code) from error

    run.__doc__ = "\n\n".join(" ".join(paragraph.split()) for paragraph in (function.__doc__ or "").split("\n\n"))
    return run


def _ending_of(error: BaseException) -> tuple[str, ExitCode] | None:
    if isinstance(error, BaseExceptionGroup):
        endings = [ending for inner in error.exceptions if (ending := _ending_of(inner)) is not None]
        return endings[0] if endings else None
    if isinstance(error, CommandError):
        return str(error), error.exit_code
    return _ending_of_call(error) or _ending_of_replay(error) or _ending_of_input(error)


def _ending_of_input(error: BaseException) -> tuple[str, ExitCode] | None:
    from services.core.merging.errors import MergingError
    from services.model.errors import ModelError
    from services.runtime.errors import RuntimeFault
    from services.tasks.errors import TasksError

    if isinstance(error, ModelError | TasksError | RuntimeFault | MergingError):
        return str(error), ExitCode.BAD_INPUT
    if isinstance(error, ModuleNotFoundError):
        return f'{error}: install it with pip install "moedge[worker,report]"', ExitCode.BAD_INPUT
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error), ExitCode.BAD_INPUT
    return None


def _ending_of_replay(error: BaseException) -> tuple[str, ExitCode] | None:
    """Errors of the load generator, which only commands that generate load have imported."""
    if "loadgen.child" in sys.modules and isinstance(error, sys.modules["loadgen.child"].ChildError):
        return str(error), ExitCode.BAD_INPUT
    if "loadgen.replay" in sys.modules and isinstance(error, sys.modules["loadgen.replay"].ReplayError):
        return str(error), ExitCode.FAILED if error.__cause__ is None else ExitCode.UNREACHABLE
    return None


def _ending_of_call(error: BaseException) -> tuple[str, ExitCode] | None:
    """Errors of a call to the target; grpc is imported by whoever called, so that `--help` does without it."""
    if "grpc" not in sys.modules:
        return None
    import grpc

    from services.runtime.status import RpcFailure, failure_for

    failure = failure_for(error) if isinstance(error, grpc.aio.AioRpcError) else error
    if not isinstance(failure, RpcFailure):
        return None
    if failure.reason == "TRANSPORT" and failure.code is grpc.StatusCode.UNAVAILABLE:
        why = failure.message.removeprefix("failed to connect to all addresses; last error: ").removeprefix("UNKNOWN: ")
        return f"cannot reach the target ({why}); start one with `moedge up`, or give --target HOST:PORT", ExitCode.UNREACHABLE
    if failure.reason == "TRANSPORT" and failure.code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "no answer within the deadline; allow more time, or look with `moedge status` at what the edges are doing", ExitCode.FAILED
    user_errors = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.NOT_FOUND)
    exit_code = ExitCode.BAD_INPUT if failure.code in user_errors else ExitCode.FAILED
    retry = f" (retry after {failure.retry_after_s:g} s)" if failure.retry_after_s else ""
    return f"{failure.code.name} {failure.message}{retry}", exit_code


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on standard output, keys as given, the version of its schema first."""
    typer.echo(json.dumps({"schema_version": 1, **value}, indent=2, ensure_ascii=False, allow_nan=False))


def stdout() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def progress() -> Callable[[str], None]:
    """Says what is being done, dimmed, on standard error."""
    console = stderr()
    return lambda what: console.print(f"[dim]{what}[/dim]")


def table(title: str, columns: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]], text_columns: int = 1) -> Table:
    """A table whose first `text_columns` columns are text and whose others are figures."""
    from rich.table import Table

    made = Table(title=title or None, title_justify="left", header_style="bold")
    for n, name in enumerate(columns):
        made.add_column(name, justify="left" if n < text_columns else "right", no_wrap=n == 0, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def narrow_table(columns: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> Table:
    """A table without lines between its columns, for many of them in 80 characters. Headings and figures are never cut."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=0, pad_edge=False, show_edge=False)
    for n, name in enumerate(columns):
        made.add_column(name, justify="left" if n < text_columns else "right", overflow="fold", no_wrap=n >= text_columns)
    for row in rows:
        made.add_row(*row)
    return made


def in_seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def in_shares(shares: Mapping[str, float]) -> str:
    """The largest shares first; those that would read 0 % are left out."""
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    return " ".join(f"{name} {share:.0%}" for name, share in ordered if share >= 0.005) or "-"


def in_scores(scores: Mapping[str, float]) -> str:
    return " ".join(f"{name} {score:.2f}" for name, score in sorted(scores.items())) or "-"
