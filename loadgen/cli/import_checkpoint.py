"""`moedge import-checkpoint`: a checkpoint published as pickles (.bin) made into safetensors, which is all that moedge reads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import command, print_json, progress, stdout
from loadgen.units import in_bytes


@command
def import_checkpoint(
    source: Annotated[Path, typer.Argument(help="Checkpoint directory, or its .bin file.", metavar="DIR|FILE")],
    out: Annotated[Path, typer.Option(help="New folder for the checkpoint.", metavar="DIR")],
    json: options.Json = False,
) -> None:
    """Turn a published .bin checkpoint (pickled weights) into safetensors, which is all that moedge reads; config and tokenizer come along.

    The pickle is opened in a process of its own by torch's restricted unpickler: tensors only, no other code is run.
    """
    from services.model.importing import import_checkpoint as imported

    done = imported(source.expanduser(), out.expanduser(), progress())
    if json:
        print_json({**asdict(done), "directory": str(done.directory)})
    else:
        tensors = "1 tensor" if done.num_tensors == 1 else f"{done.num_tensors} tensors"
        stdout().print(f"{done.directory}: {tensors}, {in_bytes(done.num_bytes)}; use it with --model {done.directory}")
