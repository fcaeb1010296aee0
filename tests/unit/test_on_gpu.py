"""The same model on a GPU: its tokens and counts, recorded steps, packed experts, and a worker that serves and is updated there."""

from __future__ import annotations

import pytest
import torch

from services.model.blob_store import BlobStore
from services.model.checkpoint import read_base
from services.model.compensation import packed_experts
from services.model.expert_store import read_experts, read_model
from services.model.families import families
from services.model.families.base import ExpertStack
from services.model.families.layers import can_replay
from services.model.families.packed_weights import PackedWeights
from services.model.families.replays import Replays
from services.model.generation import BatchEngine, Emitted, GenTask
from services.model.recorder import CountingRecorder
from services.model.records import RecordLayout
from tests.unit.pico import word, write_pico_checkpoint
from tests.unit.pico_decoders import write_pico
from tests.unit.serving_builders import budget_of, built, make_edge, running_merger, running_site
from tests.unit.test_worker_updates import Load, load

pytestmark = pytest.mark.gpu

WORDS = ("0 7 20", "31", "1 2 3 4 5 6 7 8 9 50 51", "44 45", "12 13 14 15", "2", "60 3", "9 8 7 6 5")
GPU = torch.device("cuda")


@pytest.fixture(scope="module", params=[family.name for family in families()])
def directory(request, tmp_path_factory):
    return write_pico(tmp_path_factory.mktemp(request.param), request.param)


def encoded(base):
    return [base.tokenizer.encode(" ".join(word(int(number)) for number in words.split())) for words in WORDS]


def answered(model, prompts, num_tokens=24, max_batch=4, is_told_anew=False):
    """Tokens by task, with fewer slots than tasks, and what was counted."""
    counters: list[CountingRecorder] = []

    def counter(shape):
        counters.append(CountingRecorder(shape))
        return counters[-1]

    engine = BatchEngine(model, _NoText(), "v", max_batch, counter)
    if is_told_anew:
        engine._lanes["v"].cache.replays = Replays(model.device, (), _told_anew)  # type: ignore[attr-defined]
    answers: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        engine.submit(GenTask(str(number), tuple(prompt), num_tokens - number))
    while engine.has_work:
        for event in engine.step():
            if isinstance(event, Emitted):
                answers.setdefault(event.task_id, []).append(event.token_id)
    return answers, counters[0].take()


def _told_anew(body):
    body()
    return body


class _NoText:
    def decode(self, ids):
        return ""

    def delta(self, ids_so_far, new_id):
        return ""


def test_a_gpu_answers_and_counts_as_the_processor_does(directory):
    on_cpu, on_gpu = (read_base(directory, device=device) for device in ("cpu", "cuda"))
    assert on_gpu.model.device.type == "cuda"
    (known, known_counts), (made, counts) = (answered(base.model, encoded(base)) for base in (on_cpu, on_gpu))
    assert made == known
    assert (counts == known_counts).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_recorded_steps_give_what_the_same_steps_give_told_anew(directory, dtype):
    base = read_base(directory, device="cuda", dtype=dtype)
    assert can_replay(4, base.model.experts[0].weights)
    (told, told_counts), (made, counts) = (answered(base.model, encoded(base), is_told_anew=anew) for anew in (True, False))
    assert made == told
    assert (counts == told_counts).all()


def test_wide_experts_are_recorded_with_one_product_for_all(tmp_path):
    """So wide that they are not copied for each token."""
    write_pico_checkpoint(tmp_path, d_model=256, d_ff=8192)
    base = read_base(tmp_path, device="cuda", dtype="bfloat16")
    weights = base.model.experts[0].weights
    assert not can_replay(16, {name: weight.float() for name, weight in weights.items()})
    assert can_replay(16, weights) == (torch.cuda.get_device_capability() >= (9, 0))
    prompts = encoded(base) * 3
    (told, told_counts), (made, counts) = (answered(base.model, prompts, 24, 16, is_told_anew=anew) for anew in (True, False))
    assert made == told
    assert (counts == told_counts).all()


def test_packed_experts_answer_as_on_the_processor(directory):
    on_cpu, on_gpu = (read_base(directory, device=device) for device in ("cpu", "cuda"))
    stacks = [_packed(stack) for stack in on_cpu.model.experts]
    there = [
        ExpertStack(PackedWeights({form.layout: form.records.to(GPU) for form in stack.weights.forms}, GPU), stack.index_map.to(GPU))
        for stack in stacks
    ]
    known, _ = answered(on_cpu.model.with_experts(stacks), encoded(on_cpu))
    made, _ = answered(on_gpu.model.with_experts(there), encoded(on_gpu))
    assert made == known


def _packed(stack):
    experts = [
        {name: packed_experts(weight[row : row + 1].float(), None, 4)[0] for name, weight in stack.weights.items()}
        for row in range(stack.num_kept)
    ]
    layout = RecordLayout.of(experts[0])
    return ExpertStack(PackedWeights({layout: torch.stack([layout.record(expert) for expert in experts])}), stack.index_map)


@pytest.mark.parametrize("method", ["m-smoe", "fitted"])
async def test_a_version_is_read_beside_another_and_answers_as_on_the_processor(tmp_path, method):
    async with running_merger(tmp_path, method=method) as merger:
        budget = budget_of(merger, 12)
        first, second = [await built(merger, {mix: 1.0}, budget) for mix in ("left", "right")]
        store: BlobStore = merger.builder.store
        manifests = [merger.builder.manifest(told.version) for told in (first, second)]
        prompts = encoded(merger.builder.base)
        known, _ = answered(read_model(store, manifests[1]).model, prompts)
        present = read_model(store, manifests[0], GPU).model
        made, _ = answered(present.with_experts(read_experts(store, manifests[1], present, manifests[0])), prompts)
        assert made == known


@pytest.mark.parametrize("method", ["m-smoe", "fitted"])
async def test_a_worker_serves_and_is_updated_on_a_gpu(tmp_path, method):
    async with running_merger(tmp_path, method=method) as merger:
        budget = budget_of(merger, 12)
        versions = [(await built(merger, {mix: 1.0}, budget)).version for mix in ("right", "left")]
        async with running_site(tmp_path, merger.address, make_edge(budget, device="cuda", max_batch=8)) as site:
            async with Load(site) as sent:
                for _ in range(3):
                    for version in versions:
                        report = await load(site, version)
                        assert report.ok
            assert {summary.version for summary in sent.summaries} >= set(versions)
            on_gpu = [(await site.answer(f"w{number} w5")).text for number in range(8)]
        async with running_site(tmp_path / "cpu", merger.address, make_edge(budget, max_batch=8)) as site:
            await load(site, versions[-1])
            assert [(await site.answer(f"w{number} w5")).text for number in range(8)] == on_gpu
