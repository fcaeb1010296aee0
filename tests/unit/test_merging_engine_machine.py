"""The merge engine under any order of reports, checks, rollouts, failures and restarts: no count is lost, one update at a time."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.core.merging.engine import MergeEngine
from services.core.merging.triggers import trigger
from services.core.merging.values import normalised
from tests.unit.merging_builders import TASK_TYPES, make_profiles, make_report, per_task

EXPECTED = per_task(make_profiles(3, num_layers=3, num_experts=8, tokens_per_task=60))
EDGE = "edge-a"
NAMES = st.sampled_from(TASK_TYPES)


class EngineMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.version = 0
        self.engine = self.new_engine()
        self.window_tasks = self.asked_tasks = 0
        self.open = False
        self.deployed_as("facts")

    def new_engine(self):
        return MergeEngine(trigger("jtom", min_tokens=200, interval_s=5.0, adjustment_s=5.0), cool_down_s=3.0, backoff_s=2.0)

    def deployed_as(self, name):
        self.version += 1
        self.engine.deployed(EDGE, f"v{self.version}", normalised(EXPECTED[name]), EXPECTED, {name: 1.0}, self.now_s)
        self.window_tasks = self.asked_tasks = 0
        self.open = False

    @rule(name=NAMES, num_tasks=st.integers(1, 40))
    def report(self, name, num_tasks):
        counts = np.round(EXPECTED[name] * num_tasks).astype(np.int64)
        assert self.engine.observe(make_report(counts, version=f"v{self.version}", num_tasks=num_tasks, at_s=self.now_s), self.now_s)
        self.window_tasks += num_tasks

    @rule(name=NAMES)
    def report_of_an_older_version(self, name):
        assert not self.engine.observe(make_report(EXPECTED[name].astype(np.int64), version=f"v{self.version - 1}"), self.now_s)

    @rule(seconds=st.floats(0.1, 60.0))
    def time_passes(self, seconds):
        self.now_s += seconds

    @rule()
    def check(self):
        due = self.now_s >= self.engine.due_at_s(EDGE)
        request = self.engine.check(EDGE, self.now_s)
        if self.open or not due:
            assert request is None
            return
        decision = self.engine.decision(EDGE)
        assert decision.reason
        assert decision.interval_s >= 1.0
        assert (request is not None) == (decision.action == "update")
        self.window_tasks = decision.carried.num_tasks
        if request is not None:
            assert abs(sum(request.mix.values()) - 1) < 1e-9
            assert request.shift >= 0.2
            self.open, self.asked_tasks = True, request.num_tasks

    @precondition(lambda self: self.open)
    @rule(name=NAMES)
    def rollout(self, name):
        self.deployed_as(name)
        assert self.engine.due_at_s(EDGE) >= self.now_s + 3.0

    @precondition(lambda self: self.open)
    @rule()
    def failure(self):
        self.engine.failed(EDGE, self.now_s)
        assert self.engine.due_at_s(EDGE) >= self.now_s + 2.0
        self.give_back()

    @rule(jump_s=st.floats(-1000.0, 1000.0))
    def restart_on_another_clock(self, jump_s):
        saved = self.engine.dump(EDGE, self.now_s)
        self.now_s += jump_s
        self.engine = self.new_engine()
        self.engine.restore(EDGE, saved, self.now_s)
        self.give_back()

    def give_back(self):
        self.window_tasks += self.asked_tasks
        self.asked_tasks, self.open = 0, False

    @invariant()
    def every_task_is_counted_once(self):
        assert self.engine.num_tasks(EDGE) == self.window_tasks
        assert self.engine.pending(EDGE) == self.open
        assert self.engine.deployed_version(EDGE) == f"v{self.version}"


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
