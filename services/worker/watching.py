"""One task's call as this worker shows it: its times as metrics and as spans of its trace."""

from __future__ import annotations

from services.model.generation import Emitted, Finished, GenEvent
from services.runtime.clock import Clock
from services.runtime.tracing import Tracer
from services.worker.batch_loop import Ticket
from services.worker.metrics import WorkerMetrics


class CallWatch:
    """Sees the events of a task as they are passed on, and how the call ended."""

    def __init__(self, ticket: Ticket, metrics: WorkerMetrics, tracer: Tracer, clock: Clock) -> None:
        self._ticket = ticket
        self._metrics = metrics
        self._tracer = tracer
        self._clock = clock
        self._first_token_at_s: float | None = None

    def see(self, event: GenEvent) -> None:
        if isinstance(event, Emitted) and self._first_token_at_s is None:
            self._first_token_at_s = self._clock.now_s()
        elif isinstance(event, Finished):
            self._finished(event)

    def ended(self, completed: bool, failed: bool) -> None:
        """Spans are made at the end: nothing is done for them while the task runs."""
        if failed:
            self._metrics.failed()
        elif not completed:
            self._metrics.cancelled()
        ticket, now_s = self._ticket, self._clock.now_s()
        started_at_s = ticket.started_at_s
        waited_until_s = started_at_s if started_at_s is not None else now_s
        self._tracer.record("queue", now_s - ticket.accepted_at_s, waited_until_s - ticket.accepted_at_s)
        if started_at_s is not None:
            ran_until_s = ticket.ended_at_s if ticket.ended_at_s is not None else now_s
            about = {"prompt_tokens": len(ticket.task.prompt_ids)}
            self._tracer.record("inference", now_s - started_at_s, ran_until_s - started_at_s, about)

    def _finished(self, finished: Finished) -> None:
        ticket = self._ticket
        e2e_s = ticket.queue_wait_s + ticket.inference_s
        ttft_s = e2e_s if self._first_token_at_s is None else min(e2e_s, self._first_token_at_s - ticket.accepted_at_s)
        self._metrics.completed(
            queue_wait_s=ticket.queue_wait_s,
            ttft_s=ttft_s,
            e2e_s=e2e_s,
            prompt_tokens=finished.prompt_tokens,
            output_tokens=finished.output_tokens,
        )
