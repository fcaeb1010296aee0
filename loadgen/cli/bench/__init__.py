"""`moedge bench`: ours beside the alternative in one run. Prints figures and ratios; asserts nothing. One file a benchmark."""

from __future__ import annotations

import typer

from loadgen.cli.bench.broker import broker
from loadgen.cli.bench.everything import everything
from loadgen.cli.bench.fitted import fitted
from loadgen.cli.bench.merge import merge
from loadgen.cli.bench.simulator import simulator
from loadgen.cli.bench.swap import swap
from loadgen.cli.bench.worker import worker

app = typer.Typer(no_args_is_help=True, help="Measure ours beside the alternative, in one run.")


@app.callback()
def bench() -> None:
    """A group, so that the benchmark is always named."""


app.command("all")(everything)
app.command()(broker)
app.command()(fitted)
app.command()(merge)
app.command()(simulator)
app.command()(swap)
app.command()(worker)
