"""Made-up runs for tests of the report: plausible shapes, no measurement behind them."""

from __future__ import annotations

from typing import Any

import numpy as np

from loadgen.report.values import HeatMap, ReportInput, UnmergedArm
from loadgen.results import EdgeSample, Finished, Outcome, ReplayResult, Swap, Update
from services.core.merging.values import normalised

TYPES = ("alternative", "facts", "pronoun", "question", "sentence")
EDGES = ("large", "medium", "small")
PHASES = (
    (0.0, {"facts": 0.4, "question": 0.4, "alternative": 0.1, "pronoun": 0.05, "sentence": 0.05}),
    (25.0, {"sentence": 0.4, "pronoun": 0.4, "alternative": 0.1, "facts": 0.05, "question": 0.05}),
    (50.0, {"alternative": 0.4, "facts": 0.4, "question": 0.1, "pronoun": 0.05, "sentence": 0.05}),
)


def make_finished(task_id="t", **overrides) -> Finished:
    values: dict[str, Any] = {
        "user_id": "u0",
        "region": "west",
        "task_type": "facts",
        "item_id": "facts-1",
        "alpha": 0.5,
        "intended_at_s": 1.0,
        "sent_at_s": 1.001,
        "end_at_s": 1.4,
        "outcome": Outcome.COMPLETED,
        "edge_id": "small",
        "score": 1.0,
        "predicted_quality": 0.9,
    }
    return Finished(task_id=task_id, **(values | overrides))


def make_update(edge_id="small", at_s=32.0, **overrides) -> Update:
    swap = Swap("v1aaaaaaaaaa", "v2bbbbbbbbbb", 0.21, 0.05, 0.012, 0.0, 1_400_000, 5_200_000, 6_000_000, 3)
    values: dict[str, Any] = {"version": "v2bbbbbbbbbb", "requested_at_s": at_s - 2.5, "reason": "activation shift 0.41 at or above 0.20"}
    more: dict[str, Any] = {
        "activation_shift": 0.41,
        "residual": 0.03,
        "mix": {"sentence": 0.5, "pronoun": 0.5},
        "build_s": 1.8,
        "swap": swap,
    }
    return Update(at_s=at_s, edge_id=edge_id, **(values | more | overrides))


def make_run(name="jtom", *, updates=True, num_tasks=700, seed=1) -> ReplayResult:
    """Quality falls at each drift; with updates it recovers some seconds later."""
    rng = np.random.default_rng(seed)
    marks = tuple(make_update(e, t) for t, e in ((31.0, "large"), (33.0, "small"), (34.5, "medium"), (56.0, "medium"), (58.5, "large")))
    finished = tuple(_made_up(rng, n, float(at_s), updates) for n, at_s in enumerate(np.sort(rng.random(num_tasks) * 75.0)))
    samples = tuple(EdgeSample(float(t), e, "v1", "ready", 2, 0.1, 0, 5_000_000, 6_000_000) for t in range(75) for e in EDGES)
    return ReplayResult(
        name=name,
        target="127.0.0.1:1",
        policy="onto",
        base_model="infra/demo-model",
        quality_scale=1.0,
        num_planned=num_tasks,
        planned_s=75.0,
        duration_s=75.6,
        finished=finished,
        samples=samples,
        updates=marks if updates else (),
        drifts_at_s=(25.0, 50.0),
        mixes=PHASES,
        scores_sent=num_tasks,
    )


def _made_up(rng, n, at_s, updates) -> Finished:
    phase = sum(at_s >= start_s for start_s, _ in PHASES) - 1
    shares = PHASES[phase][1]
    task_type = str(rng.choice(list(shares), p=list(shares.values())))
    built_for = PHASES[max(phase - (at_s < PHASES[phase][0] + 8.0), 0)][1] if updates else PHASES[0][1]
    good = 0.94 if built_for[task_type] >= 0.3 else 0.4
    wait_s, inference_s = float(rng.exponential(0.12)), float(rng.gamma(4.0, 0.05))
    late_s = float(rng.exponential(0.001))
    edge = EDGES[int(rng.integers(3))]
    return make_finished(
        f"task-{n:03d}",
        task_type=task_type,
        item_id=f"{task_type}-{n}",
        alpha=float(rng.uniform(0.01, 1.0)),
        intended_at_s=at_s,
        sent_at_s=at_s + late_s,
        first_token_at_s=at_s + late_s + wait_s + 0.05,
        end_at_s=at_s + late_s + wait_s + inference_s + 0.05,
        edge_id=edge,
        score=float(rng.random() < good + 0.05 * EDGES[::-1].index(edge)),
        predicted_quality=good,
        predicted_queue_wait_s=max(0.0, wait_s + float(rng.normal(0, 0.03))),
        queue_wait_s=wait_s,
        inference_s=inference_s,
        decision_s=0.0003,
    )


def make_report() -> ReportInput:
    rng = np.random.default_rng(3)
    arms = tuple(
        UnmergedArm(edge, bits, size, memory, {t: float(q) for t, q in zip(TYPES, rng.random(5) * bits / 6, strict=True)})
        for edge, bits, size, memory in (
            ("small", 2, 2_900_000, 3_000_000),
            ("medium", 3, 4_000_000, 4_200_000),
            ("large", 5, 6_000_000, 6_300_000),
        )
    )

    def frequencies(shift):
        return normalised(np.exp(2.2 * np.sin(np.arange(12)[:, None] * 1.7 + np.arange(32)[None, :] * 0.9 + shift)) * rng.random((12, 32)))

    maps = tuple(
        HeatMap(e, frequencies(2.0), frequencies(0.0), frequencies(2.0), "facts 40 %, question 40 %", "sentence 50 %, pronoun 50 %")
        for e in EDGES
    )
    return ReportInput(
        title="One model, three edges, a mix that drifts",
        runs={"jtom": make_run("jtom"), "static": make_run("static", updates=False)},
        unmerged=arms,
        heat_maps=maps,
        setup={"model": "infra/demo-model", "edges": "small 25 %, medium 40 %, large 60 % of the experts", "seed": "0"},
    )
