"""The rows and panels of the Grafana dashboard: what each shows, in a sentence, and by which queries. `build.py` makes JSON of them."""

from __future__ import annotations

from dataclasses import dataclass, field

RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    text: str  # one sentence for someone who sees the board for the first time
    unit: str
    queries: dict[str, str]  # PromQL by legend; a legend may name labels as {{edge}}
    kind: str = "timeseries"
    width: int = 8
    stacked: bool = False
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: list[Panel] = field(default_factory=list)


def quantiles(metric: str, by: str = "", where: str = "") -> dict[str, str]:
    """Median and 99th percentile of a histogram."""
    labels = f"le, {by}" if by else "le"
    legend = f" {{{{{by}}}}}" if by else ""
    rates = f"sum by ({labels}) (rate({metric}_bucket{where}{RATE}))"
    return {f"p50{legend}": f"histogram_quantile(0.5, {rates})", f"p99{legend}": f"histogram_quantile(0.99, {rates})"}


def mean(metric: str, by: str = "", where: str = "") -> str:
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({metric}_sum{where}{RATE})) / {grouped} (rate({metric}_count{where}{RATE}))"


def rate(metric: str, by: str, where: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{where}{RATE}))"


FLEET = Row(
    "Fleet",
    [
        Panel(
            "Edges",
            "How many edge servers the brokers can send tasks to, and how many they cannot.",
            "none",
            {"{{state}}": "max by (state) (moedge_broker_edges)"},
            kind="stat",
            width=6,
        ),
        Panel(
            "Tasks in flight",
            "Tasks that brokers have sent to an edge and that are not done yet.",
            "none",
            {"in flight": "sum(moedge_broker_inflight)"},
            kind="stat",
            width=3,
        ),
        Panel(
            "Services connected",
            "Whether every service has its connection to Kafka and Redis: 1 is yes, 0 says that one has lost it.",
            "none",
            {"Kafka": "min(moedge_kafka_connected)", "Redis": "min(moedge_redis_connected)"},
            kind="stat",
            width=5,
        ),
        Panel(
            "Versions served",
            "The merged model that each edge answers with now.",
            "none",
            {"{{edge}} {{version}}": "max by (edge, version) (moedge_edge_model_info)"},
            kind="table",
            width=10,
        ),
        Panel(
            "Tasks per second",
            "How tasks ended: completed ones got their answer, rejected ones were refused before any edge had them.",
            "ops",
            {"{{outcome}}": rate("moedge_broker_tasks_total", "outcome")},
            stacked=True,
        ),
        Panel(
            "Completion time",
            "What users wait for the whole answer, links included.",
            "s",
            quantiles("moedge_broker_completion_seconds"),
        ),
        Panel(
            "Quality",
            "Quality that the chosen versions promised for the tasks they got, and what users scored the answers.",
            "percentunit",
            {"promised": mean("moedge_broker_predicted_quality"), "scored": mean("moedge_broker_score")},
            largest=1.0,
        ),
        Panel(
            "Where tasks go",
            "Tasks sent to each edge: who carries the load.",
            "ops",
            {"{{edge}}": rate("moedge_broker_offloads_total", "edge")},
            stacked=True,
        ),
        Panel(
            "Refused",
            "Tasks refused, by reason: queue_full asks for more workers, predicted_late for longer deadlines.",
            "ops",
            {"{{reason}}": rate("moedge_broker_rejections_total", "reason")},
            stacked=True,
        ),
        Panel(
            "Rerouted",
            "Attempts that an edge did not finish, so that another edge took over; by what went wrong.",
            "ops",
            {"{{cause}}": rate("moedge_broker_reroutes_total", "cause")},
            stacked=True,
        ),
        Panel(
            "Decision time",
            "What choosing an edge takes inside the broker: the price of the middleman.",
            "s",
            quantiles("moedge_broker_decision_seconds"),
        ),
        Panel(
            "Prediction error",
            "How far predicted completion times were off: tasks that were faster than predicted, and slower ones.",
            "s",
            {
                "faster, mean": mean("moedge_broker_prediction_error_over_seconds"),
                "slower, mean": mean("moedge_broker_prediction_error_under_seconds"),
            },
        ),
        Panel(
            "Age of predictions",
            "How old the facts are that a broker predicts from; above three seconds an edge counts as stale.",
            "s",
            {"{{edge}}": "max by (edge) (moedge_redis_prediction_age_seconds)", "stale edges": "max(moedge_broker_stale_edges)"},
        ),
        Panel(
            "RPCs per second",
            "Calls that services took, by how they ended.",
            "ops",
            {"{{code}}": rate("moedge_rpc_calls_total", "code")},
            stacked=True,
        ),
        Panel(
            "Events waiting",
            "Events not yet delivered to Kafka, and records that the controller has not read yet.",
            "none",
            {
                "outbox of {{job}}": "sum by (job) (moedge_kafka_outbox_depth)",
                "unread by {{group}}": "sum by (group) (moedge_kafka_consumer_lag)",
            },
        ),
        Panel(
            "Processor",
            "Processor seconds per second of each service: 1 is one core.",
            "none",
            {"{{job}}": "sum by (job) (rate(process_cpu_seconds_total[$__rate_interval]))"},
        ),
        Panel(
            "Memory of services", "Memory that each service takes.", "bytes", {"{{job}}": "sum by (job) (process_resident_memory_bytes)"}
        ),
    ],
)

ONE = '{edge=~"$edge"}'
EDGE = Row(
    "One edge: $edge",
    [
        Panel(
            "Version",
            "Base model and merged version that the edge serves; it changes with every rollout.",
            "none",
            {"{{edge}} {{version}}": f"max by (edge, model, version) (moedge_edge_model_info{ONE})"},
            kind="table",
        ),
        Panel(
            "Queue",
            "Tasks that wait and tasks in the batch, with the most that each may hold.",
            "none",
            {
                "waiting": f"sum(moedge_edge_queue_depth{ONE})",
                "in the batch": f"sum(moedge_edge_running{ONE})",
                "batch limit": f"sum(moedge_edge_batch_limit{ONE})",
            },
        ),
        Panel(
            "Memory",
            "Size of the model against the memory that the edge has for one.",
            "bytes",
            {"model": f"sum(moedge_edge_model_bytes{ONE})", "memory": f"sum(moedge_edge_memory_bytes{ONE})"},
        ),
        Panel("Queue wait", "From acceptance to the start of a task.", "s", quantiles("moedge_edge_queue_wait_seconds", where=ONE)),
        Panel("Time to first token", "From acceptance to the first token.", "s", quantiles("moedge_edge_ttft_seconds", where=ONE)),
        Panel(
            "Time per output token", "After the first one: how fast text appears.", "s", quantiles("moedge_edge_tpot_seconds", where=ONE)
        ),
        Panel("Time at the edge", "From acceptance to the last token.", "s", quantiles("moedge_edge_e2e_seconds", where=ONE)),
        Panel(
            "Tasks ended",
            "Tasks that ended at this edge; cancelled ones were withdrawn by their broker or user.",
            "ops",
            {"{{outcome}}": rate("moedge_edge_tasks_total", "outcome", ONE)},
            stacked=True,
        ),
        Panel(
            "Tokens per second",
            "Prompt tokens read and output tokens generated.",
            "ops",
            {"{{kind}}": rate("moedge_edge_tokens_total", "kind", ONE)},
        ),
        Panel(
            "Quality of the version",
            "Measured when the version was built: what it knows, by task type.",
            "percentunit",
            {"{{task_type}}": f"avg by (task_type) (moedge_edge_quality{ONE})"},
            largest=1.0,
        ),
        Panel(
            "Balance of experts",
            "How evenly tokens spread over the experts (1 is even): a merge can only drop what traffic does not use.",
            "none",
            {
                "mean over most, {{layers}} layer": f"avg by (layers) (moedge_edge_expert_balance{ONE})",
                "Jain's index, {{layers}} layer": f"avg by (layers) (moedge_edge_expert_jain{ONE})",
            },
            largest=1.0,
        ),
        Panel(
            "Pause of an update",
            "Longest time that a change of version kept running tasks waiting.",
            "s",
            quantiles("moedge_edge_swap_pause_seconds", where=ONE),
        ),
    ],
)

MERGES = Row(
    "Merges",
    [
        Panel(
            "Decisions",
            "What the controller decided so far: kept, or requested, built, swapped in, failed.",
            "none",
            {"{{outcome}}": "sum by (outcome) (moedge_merge_decisions_total)"},
            kind="stat",
            width=12,
        ),
        Panel(
            "What edges are doing",
            "Edges being watched, and those that an update is under way for.",
            "none",
            {"{{phase}}": "sum by (phase) (moedge_merge_edges)"},
            kind="stat",
            width=12,
        ),
        Panel(
            "Activation shift",
            "How far the experts in use have moved from those that the version was built for; above the threshold an edge re-merges.",
            "none",
            {"{{edge}}": "max by (edge) (moedge_merge_activation_shift)"},
        ),
        Panel(
            "Tasks counted",
            "Tasks in the activation counts since an edge's last decision.",
            "none",
            {"{{edge}}": "max by (edge) (moedge_merge_tasks_counted)"},
        ),
        Panel(
            "Time between checks",
            "JTOM shortens it after an update and lengthens it when a version is kept.",
            "s",
            {"{{edge}}": "max by (edge) (moedge_merge_check_interval_seconds)"},
        ),
        Panel(
            "Parts of an update",
            "Mean time to build a version, to ship what an edge lacks, and to load it beside the old one.",
            "s",
            {"{{phase}}": mean("moedge_merge_duration_seconds", "phase")},
        ),
        Panel(
            "Pause for users",
            "Longest time that a rollout kept tasks waiting, and time out of service where memory holds one version.",
            "s",
            {
                "pause, mean": mean("moedge_merge_swap_pause_seconds"),
                "out of service, mean": mean("moedge_merge_swap_downtime_seconds"),
            },
        ),
        Panel(
            "Bytes shipped",
            "Bytes that edges fetched for new versions, against the size of the whole models.",
            "bytes",
            {"{{kind}}": "sum by (kind) (moedge_merge_bytes_total)"},
        ),
        Panel(
            "Builds",
            "Builds that ended at the cloud merger, and those that run or wait.",
            "none",
            {"{{outcome}}": "sum by (outcome) (moedge_merger_builds_total)", "running": "sum(moedge_merger_builds_running)"},
        ),
        Panel(
            "Build time",
            "Builds at the merger; versions that were built before take no time.",
            "s",
            quantiles("moedge_merger_build_seconds"),
        ),
        Panel(
            "Reports read",
            "Activation reports that the controller took in; it ignores those of versions that an edge no longer serves.",
            "ops",
            {"{{outcome}}": rate("moedge_merge_reports_total", "outcome")},
        ),
    ],
)

ROWS = (FLEET, EDGE, MERGES)
