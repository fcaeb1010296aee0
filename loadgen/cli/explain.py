"""`moedge explain`: the decision that a task would get, with every candidate's estimates; nothing is sent."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from loadgen.cli import options
from loadgen.cli.console import command, in_seconds, in_shares, narrow_table, print_json, stdout

if TYPE_CHECKING:
    from moedge.v1 import broker_pb2
    from services.runtime.net import Network


@command
def explain(
    prompt: options.Prompt,
    task: options.TaskType = "",
    alpha: options.Alpha = None,
    region: options.Region = "",
    max_tokens: options.MaxTokens = 0,
    target: options.Target = options.TARGET,
    ca: options.Ca = None,
    token_file: options.TokenFile = None,
    json: options.Json = False,
) -> None:
    """Show where a task would go and why: each edge's predicted times, quality and cost. Nothing is sent."""
    from loadgen.cli.client import user_network
    from moedge.v1 import broker_pb2

    request = broker_pb2.ExplainRequest(
        prompt=options.prompt_of(prompt), max_tokens=max_tokens, user_id="cli", region=region, task_type=task, alpha=alpha
    )
    explained = asyncio.run(_ask(request, target, user_network(ca, token_file)))
    if json:
        print_json(as_json(explained))
    else:
        _print(explained)


async def _ask(request: broker_pb2.ExplainRequest, target: str, network: Network) -> broker_pb2.ExplainResponse:
    from loadgen.cli.client import broker_at

    async with broker_at(target, network) as client:
        return await client.explain(request)


def _print(explained: broker_pb2.ExplainResponse) -> None:
    from services.runtime.codec import seconds

    rows = [
        (
            f"[bold]{c.edge_id}[/bold]" if c.edge_id == explained.chosen else c.edge_id,
            in_seconds(seconds(c.uplink)),
            in_seconds(seconds(c.queue_wait)),
            in_seconds(seconds(c.inference)),
            in_seconds(seconds(c.downlink)),
            in_seconds(seconds(c.completion_time)),
            f"{c.quality:.3f}",
            f"{c.cost:.3f}",
            str(c.outstanding_tasks),
        )
        for c in sorted(explained.candidates, key=lambda c: (c.cost, c.edge_id))
    ]
    columns = ("edge", "uplink", "wait", "inference", "downlink", "completion", "quality", "cost", "tasks")
    output_tokens = next((f"predicted answer: {c.output_tokens:.1f} tokens   " for c in explained.candidates), "")
    console = stdout()
    console.print(f"[bold]{explained.chosen or 'no edge'}[/bold]: {explained.reason} ({explained.policy})")
    if rows:
        console.print(narrow_table(columns, rows), soft_wrap=False)
    for edge in sorted(explained.excluded, key=lambda edge: edge.edge_id):
        console.print(f"[yellow]{edge.edge_id}: no candidate, {edge.reason}[/yellow]")
    console.print(
        f"[dim]cost (s) = completion - {explained.alpha:g} (alpha) · {explained.quality_scale:g} s · quality\n"
        f"{output_tokens}decided in {seconds(explained.decision) * 1e6:.0f} µs\n"
        f"task types: {in_shares(dict(explained.posterior))}[/dim]",
        soft_wrap=False,
    )


def as_json(explained: broker_pb2.ExplainResponse) -> dict[str, object]:
    from services.runtime.codec import seconds

    return {
        "chosen": explained.chosen,
        "policy": explained.policy,
        "reason": explained.reason,
        "alpha": explained.alpha,
        "quality_scale": explained.quality_scale,
        "posterior": dict(sorted(explained.posterior.items())),
        "decision_s": seconds(explained.decision),
        "candidates": [
            {
                "edge_id": c.edge_id,
                "version": c.version,
                "uplink_s": seconds(c.uplink),
                "queue_wait_s": seconds(c.queue_wait),
                "inference_s": seconds(c.inference),
                "downlink_s": seconds(c.downlink),
                "completion_time_s": seconds(c.completion_time),
                "output_tokens": c.output_tokens,
                "quality": c.quality,
                "cost": c.cost,
                "outstanding_tasks": c.outstanding_tasks,
            }
            for c in sorted(explained.candidates, key=lambda c: (c.cost, c.edge_id))
        ],
        "excluded": [{"edge_id": edge.edge_id, "reason": edge.reason} for edge in sorted(explained.excluded, key=lambda e: e.edge_id)],
    }
