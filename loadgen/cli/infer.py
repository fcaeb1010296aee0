"""`moedge infer`: one task, its tokens printed as they come, then who served it and how long each part took."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer

from loadgen.cli import options
from loadgen.cli.console import CommandError, ExitCode, command, in_seconds, print_json, stderr

if TYPE_CHECKING:
    from moedge.v1 import inference_pb2
    from services.runtime.net import Network

Timeout = Annotated[float, typer.Option(min=0.001, help="Deadline of the task.", metavar="SECONDS")]
User = Annotated[str, typer.Option(help="Who asks.")]


@command
def infer(
    prompt: options.Prompt,
    task: options.TaskType = "",
    alpha: options.Alpha = None,
    region: options.Region = "",
    max_tokens: options.MaxTokens = 0,
    user: User = "cli",
    timeout: Timeout = 60.0,
    target: options.Target = options.TARGET,
    ca: options.Ca = None,
    token_file: options.TokenFile = None,
    json: options.Json = False,
) -> None:
    """Run one task and stream its answer.

    Exit codes: 0 answered, 1 ended in a status, 2 bad input, 3 cannot reach the target, 130 Ctrl-C.
    """
    from loadgen.cli.client import user_network
    from moedge.v1 import inference_pb2

    request = inference_pb2.GenerateRequest(
        prompt=options.prompt_of(prompt), max_tokens=max_tokens, user_id=user, region=region, task_type=task, alpha=alpha
    )
    answer = asyncio.run(_run(request, target, user_network(ca, token_file), timeout, quiet=json))
    if answer.summary is None:
        raise CommandError("the stream ended without a summary; the broker was stopped", ExitCode.FAILED)
    if json:
        print_json(_as_json(answer, answer.summary))
    else:
        _print_summary(answer, answer.summary)


@dataclass(slots=True)
class _Answer:
    accepted: inference_pb2.Accepted | None = None
    summary: inference_pb2.Summary | None = None
    restarts: list[str] = field(default_factory=list)


async def _run(request: inference_pb2.GenerateRequest, target: str, network: Network, timeout_s: float, quiet: bool) -> _Answer:
    from loadgen.cli.client import broker_at

    answer = _Answer()
    async with broker_at(target, network) as client:
        async for response in client.generate(request, timeout_s):
            match response.WhichOneof("event"):
                case "accepted":
                    answer.accepted = response.accepted
                case "token" if not quiet:
                    typer.echo(response.token.text, nl=False)
                case "restarted":
                    answer.restarts.append(response.restarted.edge_id)
                    if not quiet:
                        typer.echo()
                        stderr().print(f"[yellow]restarted on {response.restarted.edge_id}: {response.restarted.reason}; discard the above")
                case "summary":
                    answer.summary = response.summary
    return answer


def _print_summary(answer: _Answer, summary: inference_pb2.Summary) -> None:
    timings = _timings(summary)
    predicted = timings["predicted_completion_time_s"]
    typer.echo()
    console = stderr()
    console.print(
        f"[dim]edge [bold]{summary.edge_id}[/bold]  version {summary.version[:8]}  task {summary.task_type or '-'}  "
        f"tokens {summary.prompt_tokens} in, {summary.output_tokens} out  attempts {summary.attempts}[/dim]"
    )
    console.print(
        f"[dim]completion {in_seconds(timings['completion_time_s'])} (predicted {in_seconds(predicted)}): "
        f"uplink {in_seconds(timings['uplink_s'])}, wait {in_seconds(timings['queue_wait_s'])} "
        f"(predicted {in_seconds(timings['predicted_queue_wait_s'])}),\n  inference {in_seconds(timings['inference_s'])}, "
        f"downlink {in_seconds(timings['downlink_s'])}; decision {timings['decision_s'] * 1e6:.0f} µs[/dim]"
    )


def _as_json(answer: _Answer, summary: inference_pb2.Summary) -> dict[str, object]:
    from moedge.v1 import inference_pb2

    return {
        "text": summary.text,
        "task_id": summary.task_id,
        "task_type": summary.task_type,
        "edge_id": summary.edge_id,
        "version": summary.version,
        "attempts": summary.attempts,
        "restarted_on": answer.restarts,
        "finish_reason": inference_pb2.FinishReason.Name(summary.finish_reason).removeprefix("FINISH_REASON_").lower(),
        "prompt_tokens": summary.prompt_tokens,
        "output_tokens": summary.output_tokens,
        "predicted_quality": answer.accepted.predicted_quality if answer.accepted else None,
        "timings": _timings(summary),
    }


def _timings(summary: inference_pb2.Summary) -> dict[str, float]:
    from services.runtime.codec import seconds

    timings = summary.timings
    return {
        "completion_time_s": seconds(timings.completion_time),
        "uplink_s": seconds(timings.uplink),
        "queue_wait_s": seconds(timings.queue_wait),
        "inference_s": seconds(timings.inference),
        "downlink_s": seconds(timings.downlink),
        "decision_s": seconds(timings.decision),
        "predicted_queue_wait_s": seconds(timings.predicted_queue_wait),
        "predicted_completion_time_s": seconds(timings.predicted_completion_time),
    }
