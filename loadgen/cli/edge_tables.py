"""What `moedge status` shows people: the stack in two lines, then three tables that fit 80 columns, one row an edge in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loadgen.cli.console import in_scores, in_seconds, in_shares, narrow_table
from loadgen.units import in_bytes

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MAX_TYPE_COLUMNS = 6  # task types; more are written out in one column
_STATE_STYLES = {"ready": "green", "updating": "yellow", "draining": "yellow", "unreachable": "red"}


def picture(status: Mapping[str, Any]) -> RenderableType:
    """From what `moedge status --json` prints."""
    from rich.console import Group

    edges = status["edges"]
    if not edges:
        return Group(*_head(status), "[yellow]no edge has registered[/yellow]")
    serving = narrow_table(
        ("edge", "state", "version", "tasks", "running", "queued", "wait", "updates"), [_serving(edge) for edge in edges], text_columns=3
    )
    holding = narrow_table(
        ("edge", "device", "model", "memory", "filled", "slots", "speed"), [_holding(edge) for edge in edges], text_columns=2
    )
    return Group(*_head(status), "", serving, "", holding, "", *_knowing(edges))


def _head(status: Mapping[str, Any]) -> list[str]:
    lags = [f"{lag['group']} {_lag(lag)}" for lag in status["lags"]]
    return [
        f"broker {status['target']}  policy {status['policy']}  quality scale {status['quality_scale']:g} s",
        f"base model {status['base_model'] or '-'}",
        f"event log {_connected(status['kafka_connected'])} (outbox {status['outbox_depth']})  "
        f"redis {_connected(status['redis_connected'])}",
        *lags,
    ]


def _lag(lag: Mapping[str, Any]) -> str:
    if not lag["records"]:
        return f"has read all of {lag['topic']}"
    return f"is {lag['records']} records ({in_seconds(lag['behind_s'])}) behind in {lag['topic']}"


def _connected(connected: bool) -> str:
    return "connected" if connected else "[red]not connected[/red]"


def _serving(edge: Mapping[str, Any]) -> tuple[str, ...]:
    style = _STATE_STYLES.get(edge["state"], "")
    state = f"[{style}]{edge['state']}[/{style}]" if style else edge["state"]
    return (
        edge["edge_id"],
        state + (" pinned" if edge["pinned"] else ""),
        edge["version"][:8],
        str(edge["outstanding_tasks"]),
        str(edge["running_tasks"]),
        str(edge["queued_tasks"]),
        in_seconds(edge["predicted_queue_wait_s"]),
        str(edge["updates"]),
    )


def _holding(edge: Mapping[str, Any]) -> tuple[str, ...]:
    filled = f"{edge['model_bytes'] / edge['memory_bytes']:.0%}" if edge["memory_bytes"] else "-"
    return (
        edge["edge_id"],
        edge["device"] or "-",
        in_bytes(edge["model_bytes"]),
        in_bytes(edge["memory_bytes"]),
        filled,
        str(edge["max_batch"]),
        f"{edge['speed']:g}",
    )


def _knowing(edges: Sequence[Mapping[str, Any]]) -> list[Table | str]:
    """Expected quality by task type, and how much of that type the model was merged for."""
    task_types = sorted({task_type for edge in edges for task_type in (*edge["quality"], *edge["mix"])})
    if len(task_types) > MAX_TYPE_COLUMNS:
        rows = [(edge["edge_id"], in_shares(edge["mix"]), in_scores(edge["quality"])) for edge in edges]
        return [narrow_table(("edge", "merged for", "expected quality"), rows, text_columns=3)]
    rows = [(edge["edge_id"], *(_known(edge, task_type) for task_type in task_types)) for edge in edges]
    return [
        narrow_table(("edge", *task_types), rows),
        "[dim]expected quality, and the share of the mix that the model was merged for[/dim]",
    ]


def _known(edge: Mapping[str, Any], task_type: str) -> str:
    share = edge["mix"].get(task_type, 0.0)
    quality = f"{edge['quality'][task_type]:.2f}" if task_type in edge["quality"] else "-"
    return f"{quality} {share:>4.0%}" if share >= 0.005 else f"{quality}     "
