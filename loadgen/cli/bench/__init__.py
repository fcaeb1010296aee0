"""`moedge bench`: ours beside the alternative in one run. Prints figures and ratios; asserts nothing. One file a benchmark."""

from __future__ import annotations

import typer

from loadgen.cli.bench import broker, everything, fitted, merge, simulator, swap, worker

app = typer.Typer(no_args_is_help=True, help="Measure ours beside the alternative, in one run.")


@app.callback()
def bench() -> None:
    """A group, so that the benchmark is always named."""


app.command("all")(everything.everything)
app.command()(broker.broker)
app.command()(fitted.fitted)
app.command()(merge.merge)
app.command()(simulator.simulator)
app.command()(swap.swap)
app.command()(worker.worker)
