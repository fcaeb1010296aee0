"""`moedge status`: every edge as the broker sees it, once or again and again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli.console import command, print_json, stdout
from loadgen.cli.edge_tables import picture
from loadgen.cli.options import TARGET, Ca, Json, Target, TokenFile

if TYPE_CHECKING:
    from moedge.v1 import broker_pb2
    from services.runtime.net import Network


@command
def status(
    target: Target = TARGET,
    ca: Ca = None,
    token_file: TokenFile = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Redraw until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="Time between two looks with --watch.", metavar="SECONDS")] = 1.0,
    json: Json = False,
) -> None:
    """Show the edges: model version, memory, queue, predicted wait, expected quality, what each was merged for."""
    from loadgen.cli.client import user_network

    network = user_network(ca, token_file)
    asyncio.run(_watch(target, network, every, json) if watch else _once(target, network, json))


async def _once(target: str, network: Network, json: bool) -> None:
    from loadgen.cli.client import broker_at

    async with broker_at(target, network) as client:
        listed = await client.list_edges()
    if json:
        print_json(as_json(listed, target))
    else:
        stdout().print(picture(as_json(listed, target)), soft_wrap=False)


async def _watch(target: str, network: Network, every_s: float, json: bool) -> None:
    from rich.live import Live

    from loadgen.cli.client import broker_at
    from services.runtime.clock import SystemClock

    clock = SystemClock()
    async with broker_at(target, network) as client:
        if json:
            while True:
                print_json(as_json(await client.list_edges(), target))
                await clock.sleep(every_s)
        with Live(console=stdout(), auto_refresh=False) as live:
            while True:
                live.update(picture(as_json(await client.list_edges(), target)), refresh=True)
                await clock.sleep(every_s)


def as_json(listed: broker_pb2.ListEdgesResponse, target: str) -> dict[str, object]:
    from services.runtime.codec import seconds

    return {
        "target": target,
        "policy": listed.policy,
        "base_model": listed.base_model,
        "quality_scale": listed.quality_scale,
        "kafka_connected": listed.kafka_connected,
        "redis_connected": listed.redis_connected,
        "outbox_depth": listed.outbox_depth,
        "lags": [{"topic": lag.topic, "group": lag.group, "records": lag.records, "behind_s": seconds(lag.behind)} for lag in listed.lags],
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
        "running_tasks": edge.running_tasks,
        "queued_tasks": edge.queued_tasks,
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
