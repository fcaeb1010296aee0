"""`moedge bench`: ours beside the alternative in one run. Prints figures and ratios; asserts nothing. One file a benchmark."""

from __future__ import annotations

import typer

from loadgen.cli.bench.fitted import fitted
from loadgen.cli.bench.simulator import simulator

app = typer.Typer(no_args_is_help=True, help="Measure ours beside the alternative, in one run.")


@app.callback()
def bench() -> None:
    """A group, so that the benchmark is always named."""


app.command()(fitted)
app.command()(simulator)
