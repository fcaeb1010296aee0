"""The `moedge` command: puts the commands together. Each command's file imports what it needs when it runs, so that help is quick."""

from __future__ import annotations

from pathlib import Path

import typer

from loadgen.cli import (
    bench,
    certs,
    demo,
    edges,
    explain,
    import_checkpoint,
    infer,
    merge,
    profile,
    replay,
    reproduce,
    serve,
    simulate,
    status,
    topics,
    up,
)
from loadgen.cli.compiled import refuse_stale
from loadgen.cli.console import command

app = typer.Typer(
    name="moedge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="One Mixture-of-Experts model served from many small edge servers. "
    "Exit codes: 0 ok, 1 failed result, 2 bad input, 3 cannot reach the target, 130 Ctrl-C.",
)


@app.callback()
@command
def begin() -> None:
    refuse_stale(Path(__file__).resolve().parents[2])


app.command()(up.up)
app.command()(infer.infer)
app.command()(status.status)
app.command()(explain.explain)
app.command()(replay.replay)
app.command()(simulate.simulate)
app.command()(reproduce.reproduce)
app.command()(demo.demo)
app.command()(merge.merge)
app.command()(profile.profile)
app.command()(import_checkpoint.import_checkpoint)
app.command()(topics.topics)
app.command()(certs.certs)
app.add_typer(bench.app, name="bench")
app.add_typer(edges.app, name="edges")
app.add_typer(serve.app, name="serve")
