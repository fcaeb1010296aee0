"""`moedge edges pin|unpin|rollback|drain|resume NAME`: what an operator may do to one edge server, through the broker."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from loadgen.cli.console import command, print_json, stdout
from loadgen.cli.options import TARGET, Ca, Json, Target, TokenFile

app = typer.Typer(no_args_is_help=True, help="Pin, unpin, roll back, drain or resume one edge server.")
Name = Annotated[str, typer.Argument(help="Name of the edge server.", metavar="NAME")]


@app.command()
@command
def pin(name: Name, target: Target = TARGET, ca: Ca = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Keep the version that the edge serves until it is unpinned."""
    asyncio.run(_act("pin", name, target, ca, token_file, json))


@app.command()
@command
def unpin(name: Name, target: Target = TARGET, ca: Ca = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Let the controller update the edge again."""
    asyncio.run(_act("unpin", name, target, ca, token_file, json))


@app.command()
@command
def rollback(name: Name, target: Target = TARGET, ca: Ca = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Go back to the version served before, and stay there."""
    asyncio.run(_act("rollback", name, target, ca, token_file, json))


@app.command()
@command
def drain(name: Name, target: Target = TARGET, ca: Ca = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Send the edge no new tasks; those running finish."""
    asyncio.run(_act("drain", name, target, ca, token_file, json))


@app.command()
@command
def resume(name: Name, target: Target = TARGET, ca: Ca = None, token_file: TokenFile = None, json: Json = False) -> None:
    """Send tasks to a drained edge again."""
    asyncio.run(_act("resume", name, target, ca, token_file, json))


async def _act(action: str, name: str, target: str, ca: Path | None, token_file: Path | None, json: bool) -> None:
    from loadgen.cli.client import CALL_TIMEOUT_S, broker_at, user_network
    from moedge.v1 import broker_pb2

    result: dict[str, object] = {"action": action, "edge_id": name}
    async with broker_at(target, user_network(ca, token_file)) as client:
        stub = client.broker
        match action:
            case "pin":
                result["version"] = (await stub.PinEdge(broker_pb2.PinEdgeRequest(edge_id=name), timeout=CALL_TIMEOUT_S)).version
            case "unpin":
                result["version"] = (await stub.UnpinEdge(broker_pb2.UnpinEdgeRequest(edge_id=name), timeout=CALL_TIMEOUT_S)).version
            case "rollback":
                # The worker may have to fetch blobs that its cache dropped.
                request = broker_pb2.RollBackEdgeRequest(edge_id=name)
                result["version"] = (await stub.RollBackEdge(request, timeout=12 * CALL_TIMEOUT_S)).version
            case "resume":
                result["version"] = (await stub.ResumeEdge(broker_pb2.ResumeEdgeRequest(edge_id=name), timeout=CALL_TIMEOUT_S)).version
            case _:
                answer = await stub.DrainEdge(broker_pb2.DrainEdgeRequest(edge_id=name), timeout=CALL_TIMEOUT_S)
                result["outstanding_tasks"] = answer.outstanding_tasks
    if json:
        print_json(result)
    else:
        stdout().print("  ".join(f"{key} {value}" for key, value in result.items()))
