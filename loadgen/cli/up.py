"""`moedge up`: the whole stack in this process, until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import ExitCode, command, print_json, stderr, stdout
from loadgen.cli.places import DEFAULT_PORT
from loadgen.cli.stacks import StackOptions, stack_settings
from services.core import defaults

if TYPE_CHECKING:
    from services.stack import Stack, StackSettings


class LogLevel(StrEnum):
    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@command
def up(
    edges: options.Edges = "3",
    model: options.Model = None,
    tasks: options.Tasks = None,
    policy: options.Policy = defaults.POLICY,
    trigger: options.Trigger = defaults.TRIGGER,
    method: options.Method = "",
    quality_scale: options.QualityScale = 1.0,
    host: Annotated[str, typer.Option(help="Address the broker listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the broker; 0: any free one.", metavar="PORT")] = DEFAULT_PORT,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65000,
            help="Port of the broker's Prometheus metrics; the other services take the next ones. 0: any free ones. Without it: none.",
            metavar="PORT",
        ),
    ] = None,
    dtype: options.Dtype = "float32",
    device: options.Device = "cpu",
    threads: options.Threads = 1,
    cache: options.Cache = None,
    json: options.Json = False,
    log_level: Annotated[
        LogLevel, typer.Option(help="Of the log on stderr: debug, info, warning or error.", case_sensitive=False, metavar="LEVEL")
    ] = LogLevel.WARNING,
) -> None:
    """Start an embedded stack: merger, edge workers, controller and broker in one process; no Kafka, no Redis.

    Ctrl-C drains and ends with exit code 0: no new tasks are taken, those running get up to five seconds.
    """
    chosen = StackOptions(edges, model, tasks, policy, trigger, quality_scale, dtype, device, threads, cache, method)
    given = stack_settings(chosen)

    from services.runtime.logs import configure
    from services.stack import StackSettings

    configure("human", log_level.value)
    asyncio.run(_serve(StackSettings(**given, host=host, port=port, metrics_port=metrics_port), json))
    _end_at_once()


async def _serve(settings: StackSettings, json: bool) -> None:
    from services.runtime.lifecycle import serve_until_signalled
    from services.stack import Stack

    console = stderr()

    def progress(phase: str) -> None:
        if not json:
            console.print(f"[dim]{phase}[/dim]")

    stack = Stack(settings, on_phase=progress)
    await serve_until_signalled(stack, on_ready=lambda started: _announce(started, json), name="stack")


def _end_at_once() -> None:
    """Everything is drained and closed by now; taking torch apart module by module would only keep the user waiting for seconds."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.OK)


def _announce(stack: Stack, json: bool) -> None:
    if json:
        print_json(stack.description())
        return
    target = "" if stack.broker_address.endswith(f":{DEFAULT_PORT}") else f" --target {stack.broker_address}"
    prompt, task_type = stack.example
    quoted = shlex.quote(prompt)
    console = stdout()
    console.print(f"\n[bold green]ready[/bold green]  broker on [bold]{stack.broker_address}[/bold]  edges {', '.join(stack.edge_names)}")
    console.print("try, in another terminal:")
    console.print(f"  moedge infer {quoted} --task {task_type}{target}", markup=False)
    console.print(f"  moedge explain {quoted} --task {task_type}{target}", markup=False)
    console.print(f"  moedge status{target} --watch", markup=False)
    if metrics := ", ".join(f"{name} {port}" for name, port in stack.metrics_ports.items() if port is not None):
        console.print(f"[dim]metrics: http://127.0.0.1:PORT/metrics of {metrics}[/dim]")
    console.print("[dim]Ctrl-C drains and ends[/dim]")
