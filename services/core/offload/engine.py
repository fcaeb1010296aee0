"""The offload engine: decides where each task goes, counts it there, and learns from what became of it.

The only place of state in this package: ledger, predictors and the policy's own. The live broker and the simulator drive the same object.
Time enters as `now_s` of one monotonic clock; the engine is not thread safe, so picking and counting are one step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from services.core.offload.candidates import CandidateTable
from services.core.offload.estimator import Estimator
from services.core.offload.given import GivenValues, PublishedStepTimes
from services.core.offload.ledger import Ledger, LedgerEntry
from services.core.offload.policies import Choice, LearningPolicy, OffloadPolicy, Outcome, policy
from services.core.offload.predictors import OutputLengthPredictor, Predictors, StepTimePredictor
from services.core.offload.table import EdgeTable
from services.core.offload.values import Candidate, Decision, EdgeSnapshot, NoCandidateError, Observed, Task, Work
from services.core.offload.wait_board import WaitBoard


class OffloadEngine:
    def __init__(
        self, policy: OffloadPolicy, estimator: Estimator, ledger: Ledger, predictors: Predictors, rng: np.random.Generator
    ) -> None:
        self.predictors = predictors
        self._policy = policy
        self._policy_name = _policy_name(policy)
        self._learner: LearningPolicy | None = policy if isinstance(policy, LearningPolicy) else None
        self._sent: dict[str, tuple[Task, Candidate]] = {}  # what a learning policy waits for
        self._estimator = estimator
        self._ledger = ledger
        self._rng = rng
        self._edges: Sequence[EdgeSnapshot] = ()
        self._table = EdgeTable((), predictors, estimator.default_region, 0.0)
        self._board = WaitBoard(self._table, ledger, 0.0)

    @property
    def policy_name(self) -> str:
        return self._policy_name

    @property
    def quality_scale(self) -> float:
        return self._estimator.quality_scale

    def prepare(self, edges: Sequence[EdgeSnapshot], now_s: float) -> None:
        """Take in a new snapshot. `decide` does it by itself; doing it when the snapshot is made keeps it off a task's way.
        A snapshot is recognised by identity, so give a tuple, and the same one until something changed."""
        if edges is self._edges and isinstance(edges, tuple):
            return
        self._edges = edges
        self._table = EdgeTable(edges, self.predictors, self._estimator.default_region, now_s)
        self._board = WaitBoard(self._table, self._ledger, now_s)

    def decide(self, task: Task, edges: Sequence[EdgeSnapshot], now_s: float, tried: frozenset[str] = frozenset()) -> Decision:
        """Picks an edge and counts the task there. Raises `NoCandidateError`; then nothing is counted."""
        decision, choice, candidates = self._pick(task, edges, now_s, tried, self._rng)
        for edge_id in decision.chosen:
            self._count(task, candidates.output_tokens, edge_id, now_s)
        self._policy.chosen(decision.chosen)
        if self._learner is not None:
            self._sent[task.task_id] = (task, candidates[choice.rows[0]])
            self._learner.sent(task, candidates, choice.rows)
        return decision

    def explain(self, task: Task, edges: Sequence[EdgeSnapshot], now_s: float, tried: frozenset[str] = frozenset()) -> Decision:
        """The decision that `decide` would take now; counts nothing, and later decisions stay as they would have been."""
        return self._pick(task, edges, now_s, tried, copy.deepcopy(self._rng))[0]

    def started(self, task_id: str, now_s: float) -> None:
        self._ledger.started(task_id, now_s)

    def progressed(self, task_id: str, output_tokens: int, now_s: float) -> None:
        self._ledger.progressed(task_id, output_tokens, now_s)

    def finished(self, task_id: str, observed: Observed, now_s: float) -> None:
        """The task leaves the ledger, and the predictors learn. Unknown tasks (withdrawn before) are ignored."""
        entry = self._ledger.remove(task_id, now_s)
        if entry is None:
            return
        if self._learner is not None:
            self._teach(self._learner, task_id, observed, now_s)
        self.predictors.output_length.observe(observed.task_type, observed.output_tokens, entry.max_tokens)
        self.predictors.prompt_length.observe(entry.prompt_bytes, observed.prompt_tokens)
        i = self._table.index.get(entry.edge_id)
        if i is None:
            return
        published = self._table.edges[i].step_times
        rows = (entry.rows + min(self._ledger.num_tasks(entry.edge_id) + 1, self._table.slots[i])) / 2.0
        self.predictors.step_time.observe(
            entry.edge_id, published, observed.prompt_tokens, observed.output_tokens, rows, observed.inference_s
        )
        self._table.refresh_step_times(i)
        self._board.redescribe(i)

    def withdrawn(self, task_id: str, now_s: float) -> None:
        """The task failed or was cancelled: it leaves the ledger and teaches nothing."""
        self._ledger.remove(task_id, now_s)
        self._sent.pop(task_id, None)

    def scored(self, task_type: str, version: str, score: float) -> None:
        self.predictors.quality.observe(version, task_type, score)
        self._table.forget_quality(task_type)

    def profiled(self, output_tokens: Mapping[str, float]) -> None:
        """Mean answer lengths by task type, from the base model's profiles; they may come late."""
        self.predictors.output_length.learn_prior(output_tokens)

    def outstanding(self, now_s: float) -> Mapping[str, Work]:
        """Own work by edge, for the other brokers. Edges without any are left out."""
        return self._ledger.work(now_s)

    def wait_s(self, edge: EdgeSnapshot, now_s: float) -> float:
        """Predicted queue wait of a task that reaches the edge now."""
        i = self._table.index.get(edge.edge_id)
        if i is None or self._table.edges[i] is not edge:
            times = self.predictors.step_time.step_times(edge.edge_id, edge.step_times)
            self._ledger.describe(edge.edge_id, times, max(edge.max_batch, 1))
            forecast = self._ledger.forecast(edge.edge_id, edge.others, now_s)
            return forecast.wait_s + max(edge.unavailable_s, 0.0)
        self._board.refresh(now_s)
        return self._board.wait_s(i, now_s)

    def _pick(
        self, task: Task, edges: Sequence[EdgeSnapshot], now_s: float, tried: frozenset[str], rng: np.random.Generator
    ) -> tuple[Decision, Choice, CandidateTable]:
        if edges is not self._edges or not isinstance(edges, tuple):
            self.prepare(edges, now_s)
        self._board.refresh(now_s)
        candidates, excluded = self._estimator.estimate(task, self._table, self._board, now_s, tried)
        if not len(candidates):
            raise NoCandidateError(excluded)
        choice = self._policy.choose(task, candidates, rng)
        chosen = tuple(candidates.edges[row].edge_id for row in choice.rows)
        return Decision(task.task_id, chosen, self._policy_name, choice.reason, now_s, candidates, excluded), choice, candidates

    def _teach(self, learner: LearningPolicy, task_id: str, observed: Observed, now_s: float) -> None:
        """Tell a learning policy what became of its choice; the answer is still to travel down."""
        task, candidate = self._sent.pop(task_id, (None, None))
        if task is None or candidate is None:
            return
        completion_time_s = now_s - task.arrived_at_s + candidate.downlink_s
        quality = candidate.quality
        if observed.version != candidate.version:
            i = self._table.index.get(candidate.edge_id)
            manifest = self._table.edges[i].quality if i is not None and self._table.edges[i].version == observed.version else {}
            quality = self.predictors.quality.quality(observed.version, observed.task_type, manifest)
        learner.learned(Outcome(task, candidate.edge_id, observed.version, completion_time_s, quality))

    def _count(self, task: Task, output_tokens: float, edge_id: str, now_s: float) -> None:
        i = self._table.index[edge_id]
        rows = min(self._board.num_tasks(i) + 1, self._table.slots[i])
        entry = LedgerEntry(
            task.task_id, edge_id, task.prompt_bytes, float(task.prompt_tokens), output_tokens, task.max_tokens, float(rows)
        )
        self._ledger.add(entry, now_s)


def offload_engine(
    policy_name: str,
    *,
    quality_scale: float,
    rng: np.random.Generator,
    default_region: str = "default",
    output_tokens: Mapping[str, float] | None = None,
    policy_options: Mapping[str, object] | None = None,
    given: GivenValues | None = None,
) -> OffloadEngine:
    """An engine with everything it needs. With `given` values, an oracle's say, step times are taken as published too."""
    step_time = PublishedStepTimes() if given else StepTimePredictor()
    predictors = Predictors(output_length=OutputLengthPredictor(output_tokens), step_time=step_time)
    made = policy(policy_name, **(policy_options or {}))
    return OffloadEngine(made, Estimator(predictors, quality_scale, default_region, given), Ledger(), predictors, rng)


def _policy_name(made: OffloadPolicy) -> str:
    return type(made).__module__.rsplit(".", 1)[-1]
