"""`moedge status`: every edge as the broker sees it, once or again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli.console import command, in_bytes, in_scores, in_seconds, in_shares, print_json, stdout, table
from loadgen.cli.options import TARGET, Json, Target

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moedge.v1 import broker_pb2

_STATE_STYLES = {"ready": "green", "updating": "yellow", "draining": "yellow", "unreachable": "red"}


@command
def status(
    target: Target = TARGET,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Redraw until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks with --watch.")] = 1.0,
    json: Json = False,
) -> None:
    """Show the edges: model version, memory, queue, predicted wait, expected quality, what each was merged for."""
    asyncio.run(_watch(target, every, json) if watch else _once(target, json))


async def _once(target: str, json: bool) -> None:
    from loadgen.cli.client import broker_at

    async with broker_at(target) as client:
        listed = await client.list_edges()
    if json:
        print_json(as_json(listed, target))
    else:
        stdout().print(picture(listed, target))


async def _watch(target: str, every_s: float, json: bool) -> None:
    from rich.live import Live

    from loadgen.cli.client import broker_at
    from services.runtime.clock import SystemClock

    clock = SystemClock()
    async with broker_at(target) as client:
        if json:
            while True:
                print_json(as_json(await client.list_edges(), target))
                await clock.sleep(every_s)
        with Live(console=stdout(), auto_refresh=False) as live:
            while True:
                live.update(picture(await client.list_edges(), target), refresh=True)
                await clock.sleep(every_s)


def picture(listed: broker_pb2.ListEdgesResponse, target: str) -> RenderableType:
    """The tables that people see."""
    from rich.console import Group

    edges = [edge_as_json(edge) for edge in sorted(listed.edges, key=lambda edge: edge.edge_id)]
    serving = table(
        "",
        ("edge", "state", "version", "model", "memory", "speed", "slots", "tasks", "predicted wait", "updates"),
        [_serving_row(edge) for edge in edges],
        text_columns=3,
    )
    merged = table("", ("edge", "merged for", "expected quality"), [_merged_row(edge) for edge in edges], text_columns=3)
    log = "connected" if listed.kafka_connected else "[red]not connected[/red]"
    redis = "connected" if listed.redis_connected else "[red]not connected[/red]"
    head = (
        f"broker {target}  policy {listed.policy}  quality scale {listed.quality_scale:g} s  base model {listed.base_model or '-'}\n"
        f"event log {log} (outbox {listed.outbox_depth})  redis {redis}"
    )
    return Group(head, serving, merged) if edges else Group(head, "[yellow]no edge has registered[/yellow]")


def _serving_row(edge: dict[str, object]) -> tuple[str, ...]:
    state = str(edge["state"])
    style = _STATE_STYLES.get(state, "")
    shown = f"[{style}]{state}[/{style}]" if style else state
    return (
        str(edge["edge_id"]),
        shown + (" (pinned)" if edge["pinned"] else ""),
        str(edge["version"])[:12],
        in_bytes(_figure(edge, "model_bytes")),
        in_bytes(_figure(edge, "memory_bytes")),
        f"{_figure(edge, 'speed'):g}",
        str(edge["max_batch"]),
        str(edge["outstanding_tasks"]),
        in_seconds(_figure(edge, "predicted_queue_wait_s")),
        str(edge["updates"]),
    )


def _merged_row(edge: dict[str, object]) -> tuple[str, ...]:
    mix, quality = edge["mix"], edge["quality"]
    assert isinstance(mix, dict)
    assert isinstance(quality, dict)
    return str(edge["edge_id"]), in_shares(mix), in_scores(quality)


def _figure(edge: dict[str, object], name: str) -> float:
    value = edge[name]
    assert isinstance(value, int | float)
    return float(value)


def as_json(listed: broker_pb2.ListEdgesResponse, target: str) -> dict[str, object]:
    return {
        "target": target,
        "policy": listed.policy,
        "base_model": listed.base_model,
        "quality_scale": listed.quality_scale,
        "kafka_connected": listed.kafka_connected,
        "redis_connected": listed.redis_connected,
        "outbox_depth": listed.outbox_depth,
        "edges": [edge_as_json(edge) for edge in sorted(listed.edges, key=lambda edge: edge.edge_id)],
    }


def edge_as_json(edge: broker_pb2.Edge) -> dict[str, object]:
    from services.runtime.codec import seconds, state_from_proto

    return {
        "edge_id": edge.edge_id,
        "address": edge.address,
        "state": state_from_proto(edge.state).value,
        "version": edge.version,
        "pinned": edge.pinned,
        "updates": edge.updates,
        "mix": dict(sorted(edge.mix.items())),
        "quality": dict(sorted(edge.quality.items())),
        "memory_bytes": edge.memory_bytes,
        "model_bytes": edge.model_bytes,
        "speed": edge.speed,
        "device": edge.device,
        "max_batch": edge.max_batch,
        "max_queue": edge.max_queue,
        "outstanding_tasks": edge.outstanding_tasks,
        "predicted_queue_wait_s": seconds(edge.predicted_queue_wait),
        "links": {
            region: {
                "latency_s": seconds(link.latency),
                "uplink_bytes_per_s": link.uplink_bytes_per_s,
                "downlink_bytes_per_s": link.downlink_bytes_per_s,
            }
            for region, link in sorted(edge.links.items())
        },
    }
