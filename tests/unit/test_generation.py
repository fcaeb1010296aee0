"""The batch engine on a random pico model: batching, early stop, cancellation, resume and two versions at once change no answer."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch

from services.model.families import family_of
from services.model.families.base import ExpertStack, MoeModel
from services.model.generation import BatchEngine, Emitted, Finished, GenTask, Started, VersionGoneError
from tests.unit.pico_decoders import write_pico_decoder
from tests.unit.test_switch_family import write_pico

PROMPTS = {"a": (5, 9, 11, 1), "b": (7, 1), "c": (20, 21, 22, 23, 24, 25, 26, 1), "d": (3, 4, 1), "e": (8, 8, 1)}


class SpelledTokens:
    """Ids as words."""

    def decode(self, ids):
        return " ".join(map(str, ids))

    def delta(self, ids_so_far, new_id):
        return f" {new_id}" if ids_so_far else str(new_id)


class Counter:
    def __init__(self, shape):
        self._counts = np.zeros((len(shape.layers), shape.layers[0].num_experts), dtype=np.int64)

    def record(self, layer, chosen, logits, inputs, gates):
        self._counts[layer] += np.bincount(chosen.flatten().numpy(), minlength=self._counts.shape[1])

    def take(self):
        taken = self._counts.copy()
        self._counts[:] = 0
        return taken


@pytest.fixture(scope="module", params=["switch", "olmoe"])
def model(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("pico")
    if request.param == "switch":
        write_pico(directory)
    else:
        write_pico_decoder(directory, request.param, num_experts=4)
    return family_of(json.loads((directory / "config.json").read_text())).read(directory, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def merged(model):
    index_map = torch.tensor([0, 1, 0, 1])
    return model.with_experts([ExpertStack({k: w[:2].clone() for k, w in s.weights.items()}, index_map) for s in model.experts])


def make_engine(model, max_batch=2):
    return BatchEngine(model, SpelledTokens(), "v1", max_batch, Counter)


def make_task(task_id, **overrides):
    return GenTask(**{"task_id": task_id, "prompt_ids": PROMPTS[task_id], "max_tokens": 6} | overrides)


def run(engine, max_steps=100):
    finished, tokens = {}, defaultdict(list)
    for _ in range(max_steps):
        if not engine.has_work:
            break
        for event in engine.step():
            if isinstance(event, Finished):
                finished[event.task_id] = event
            elif isinstance(event, Emitted):
                tokens[event.task_id].append(event.token_id)
    return finished, tokens


def alone(model, task_id, **overrides):
    engine = make_engine(model, 1)
    engine.submit(make_task(task_id, **overrides))
    return run(engine)[0][task_id].text


def test_batched_tasks_answer_as_if_alone_and_no_more_than_max_batch_run(model):
    engine = make_engine(model, 2)
    for task_id in PROMPTS:
        engine.submit(make_task(task_id))
    most = 0
    texts = {}
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Finished):
                texts[event.task_id] = event.text
        most = max(most, engine.timing.num_rows)
    assert texts == {task_id: alone(model, task_id) for task_id in PROMPTS}
    assert most == 2


def test_tasks_start_first_in_first_out_and_prompts_are_read_as_one_batch(model):
    engine = make_engine(model, 3)
    for task_id in PROMPTS:
        engine.submit(make_task(task_id))
    started = [event.task_id for event in engine.step() if isinstance(event, Started)]
    assert started == ["a", "b", "c"]
    assert engine.timing.num_prompts == 3
    assert engine.timing.prefill_tokens == 14
    assert engine.num_queued == 2


def test_the_end_token_stops_the_answer_and_is_counted_but_not_emitted(model):
    text = alone(model, "c", max_tokens=8).split()
    engine = make_engine(model, 1)
    shape = model.shape
    eos = int(text[3])
    first = text.index(text[3])
    engine.submit(make_task("c", max_tokens=8))
    engine.model.shape = replace(shape, eos_token_ids=(99, eos))
    try:
        finished, tokens = run(engine)
    finally:
        model.shape = shape
    assert finished["c"].stopped
    assert finished["c"].output_tokens == first + 1
    assert len(tokens["c"]) == first


def test_a_cancelled_task_frees_its_slot_for_the_next_step(model):
    engine = make_engine(model, 1)
    engine.submit(make_task("a"))
    engine.submit(make_task("b"))
    engine.step()
    assert engine.cancel("a")
    events = engine.step()
    assert [e.task_id for e in events if isinstance(e, Started)] == ["b"]
    assert not any(e.task_id == "a" for e in events)
    assert not engine.cancel("a")
    engine.submit(make_task("c"))
    assert engine.cancel("c")
    assert set(run(engine)[0]) == {"b"}


def test_a_resumed_task_goes_on_after_the_tokens_it_already_had(model):
    whole = alone(model, "a").split()
    engine = make_engine(model)
    engine.submit(make_task("a", emitted_ids=tuple(map(int, whole[:3])), version="v1"))
    finished, tokens = run(engine)
    assert [str(t) for t in tokens["a"]] == whole[3:]
    assert finished["a"].text == " ".join(whole)
    assert finished["a"].output_tokens == len(whole)


def test_a_task_resumed_with_every_token_it_may_have_ends_at_once(model):
    engine = make_engine(model)
    engine.submit(make_task("a", emitted_ids=(3, 4), max_tokens=2))
    finished, tokens = run(engine)
    assert not tokens
    assert not finished["a"].stopped


def test_tasks_in_flight_finish_on_their_version_while_new_ones_use_the_installed(model, merged):
    engine = make_engine(model, 2)
    engine.submit(make_task("a"))
    engine.step()
    engine.install(merged, "v2")
    engine.submit(make_task("b"))
    assert engine.versions == ("v1", "v2")
    finished, _ = run(engine)
    assert (finished["a"].version, finished["b"].version) == ("v1", "v2")
    assert finished["a"].text == alone(model, "a")
    assert finished["b"].text == alone(merged, "b")
    assert engine.versions == ("v2",)


def test_a_queued_resume_keeps_its_version_across_an_install(model, merged):
    engine = make_engine(model, 1)
    engine.submit(make_task("a", emitted_ids=(3,), version="v1"))
    engine.install(merged, "v2")
    finished, _ = run(engine)
    assert finished["a"].version == "v1"
    with pytest.raises(VersionGoneError, match="v1"):
        engine.submit(make_task("a", version="v1"))


def test_counts_are_kept_by_version_and_sum_to_the_tokens(model, merged):
    engine = make_engine(model, 2)
    engine.submit(make_task("a", region="west"))
    engine.submit(make_task("b"))
    run(engine)
    assert engine.take_counts(3) == []
    (taken,) = engine.take_counts(2)
    assert (taken.version, taken.num_tasks, taken.tasks_by_region) == ("v1", 2, {"west": 1})
    read = {"encoder": 6, "decoder": 12, "layers": 6 + 2 * 5}  # prompts and answers; the last token of an answer is read by nobody
    assert taken.counts.sum(axis=1).tolist() == [read[layer.name.split(".")[0]] * layer.top_k for layer in model.shape.layers]
    assert engine.take_counts(1) == []


def test_an_engine_on_hold_finishes_what_runs_and_admits_nothing(model, merged):
    engine = make_engine(model, 1)
    engine.submit(make_task("a"))
    engine.step()
    engine.submit(make_task("b"))
    engine.hold()
    assert set(run(engine)[0]) == {"a"}
    assert engine.unload() == []
    assert not engine.has_work
    engine.install(merged, "v2")
    engine.resume()
    assert run(engine)[0]["b"].text == alone(merged, "b")


def test_an_abandoned_batch_leaves_the_queue_to_run(model):
    engine = make_engine(model, 2)
    for task_id in PROMPTS:
        engine.submit(make_task(task_id))
    engine.step()
    assert engine.abandon() == ["a", "b"]
    assert set(run(engine)[0]) == {"c", "d", "e"}


def test_a_version_that_nothing_needs_is_handed_over_to_be_freed(model, merged):
    handed: list[list[MoeModel]] = []
    engine = BatchEngine(model, SpelledTokens(), "old", 2, Counter, handed.append)
    engine.submit(GenTask("a", PROMPTS["a"], 4))
    engine.step()
    engine.install(merged, "new")
    assert handed == []
    while engine.has_work:
        engine.step()
    assert handed == [[model]]
    assert engine.versions == ("new",)
