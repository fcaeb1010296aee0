"""Greedy answers to a list of prompts in plain batches, each row stopping early. For calibration and checks; serving has its own engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.model.families.base import MoeModel, Recorder


def greedy(
    model: MoeModel,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    batch_size: int = 64,
    recorder: Recorder | None = None,
    enough: Callable[[Sequence[int]], bool] | None = None,
) -> list[list[int]]:
    """Token ids of each answer, its end token included. Prompts of like length share a batch. An answer that is `enough` ends there."""
    answers: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    ends = model.shape.eos_token_ids
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        cache = model.new_cache(len(rows))
        active = list(range(len(rows)))
        model.prefill(cache, active, [prompts[row] for row in rows], recorder)
        for _ in range(max_tokens):
            tokens = model.step(cache, active, recorder)
            for slot, token in zip(active, tokens, strict=True):
                answers[rows[slot]].append(token)
            active = [slot for slot, token in zip(active, tokens, strict=True) if token not in ends]
            if enough is not None:
                active = [slot for slot in active if not enough(answers[rows[slot]])]
            if not active:
                break
    return answers
