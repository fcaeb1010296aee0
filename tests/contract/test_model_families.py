"""What every model family owes the rest of moedge: one body over all of them, on random pico checkpoints.

That a family computes what its paper says is not here: each has a parity test against transformers in `tests/unit`.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from services.core.merging.values import LayerPlan, MergePlan
from services.model.alignment import align
from services.model.blob_store import BlobStore
from services.model.build import Builder, BuildOptions, BuildSettings
from services.model.checkpoint import BaseModel, read_base
from services.model.errors import CheckpointError, PromptError
from services.model.expert_store import read_experts, read_model
from services.model.families import families, family_of
from services.model.families.base import ExpertStack, MoeModel
from services.model.generation import BatchEngine, Finished, GenTask, Started
from services.model.greedy import greedy
from services.model.memory import unique_bytes
from services.model.merges import merge_methods
from services.model.merging import merged_experts
from services.model.quantise import quantised, zeroed
from services.model.recorder import CountingRecorder, GramRecorder
from services.model.recovery import RecoveryOptions, examples, recover
from tests.unit.pico import pico_tasks, word
from tests.unit.pico_decoders import write_pico

WORDS = ("0 7 20", "31", "1 2 3 4 5 6 7 8 9 50 51", "44 45")
TARGETS = [[8, 9, 1], [10, 11, 12, 13, 1], [1], [14, 15, 1]]
PAIRS = LayerPlan(((0, 5), (2, 1, 7), (3,), (6, 4)), ((0.75, 0.25), (0.5, 0.25, 0.25), (1.0,), (0.5, 0.5)))
FAMILIES = [family.name for family in families()]


@pytest.fixture(scope="module", params=FAMILIES)
def base(request, tmp_path_factory) -> BaseModel:
    return read_base(write_pico(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="module")
def prompts(base) -> list[list[int]]:
    return [base.tokenizer.encode(" ".join(word(int(number)) for number in words.split())) for words in WORDS]


@pytest.fixture(scope="module")
def builder(base, tmp_path_factory) -> Builder:
    return Builder(base, pico_tasks(), tmp_path_factory.mktemp("cache"), BuildSettings(profiled_items=8, measured_items=4))


def generate(model: MoeModel, prompts, num_tokens, recorder=None) -> list[list[int]]:
    cache = model.new_cache(len(prompts))
    slots = list(range(len(prompts)))
    model.prefill(cache, slots, prompts, recorder)
    return [list(tokens) for tokens in zip(*(model.step(cache, slots, recorder) for _ in range(num_tokens)), strict=True)]


def logits(model: MoeModel, prompts) -> torch.Tensor:
    with torch.no_grad():
        return model.teacher_forced(prompts, TARGETS)


def with_stacks(base: BaseModel, change) -> BaseModel:
    """The same base with each expert stack changed."""
    return replace(base, model=base.model.with_experts([change(stack) for stack in base.model.experts]))


def rest_of(base: BaseModel) -> dict[str, torch.Tensor]:
    """Every tensor but the experts'."""
    experts = {id(weight) for stack in base.model.experts for weight in stack.weights.values()}
    return {name: tensor for name, tensor in base.model.parameters().items() if id(tensor) not in experts}


def duplicated(stack: ExpertStack) -> ExpertStack:
    """Every expert a copy of the first."""
    return ExpertStack({name: weight[:1].expand_as(weight).clone() for name, weight in stack.weights.items()}, stack.index_map)


def shuffled(stack: ExpertStack) -> ExpertStack:
    """The same functions with the hidden units of every expert in another order."""
    generator = torch.Generator().manual_seed(0)
    d_ff = stack.weights["wo"].shape[2]
    orders = [torch.randperm(d_ff, generator=generator) for _ in range(stack.num_kept)]
    moved = {
        name: torch.stack([row[:, order] if name == "wo" else row[order] for row, order in zip(weight, orders, strict=True)])
        for name, weight in stack.weights.items()
    }
    return ExpertStack(moved, stack.index_map)


def planned(base: BaseModel, layer: LayerPlan = PAIRS, method: str = "m-smoe") -> MergePlan:
    return MergePlan(base.base_id, method, (layer,) * len(base.model.experts))


def merged(base: BaseModel, layer: LayerPlan = PAIRS, method: str = "m-smoe") -> MoeModel:
    return base.model.with_experts(merged_experts(base, align(base), planned(base, layer, method)))


# Generating


def test_steps_give_the_best_token_after_all_tokens_before_it(base, prompts):
    answers = generate(base.model, prompts, 20)
    with torch.no_grad():
        told = base.model.teacher_forced(prompts, answers)
    assert told.argmax(-1).tolist() == answers
    assert len({token for answer in answers for token in answer}) > 5


def test_answers_depend_neither_on_the_batch_nor_on_the_order_in_it(base, prompts):
    alone = [generate(base.model, [prompt], 12)[0] for prompt in prompts]
    assert generate(base.model, prompts, 12) == alone
    assert generate(base.model, prompts[::-1], 12) == alone[::-1]


def test_slots_that_join_and_leave_at_different_steps_answer_as_if_alone(base, prompts):
    alone = [generate(base.model, [prompt], 9)[0] for prompt in prompts]
    cache = base.model.new_cache(4)
    answers: dict[int, list[int]] = {}
    for slot in (2, 0, 3, 1):
        base.model.prefill(cache, [slot], [prompts[slot]])
        answers[slot] = []
        active = [other for other in answers if len(answers[other]) < 6]
        for _ in range(2):
            for other, token in zip(active, base.model.step(cache, active), strict=True):
                answers[other].append(token)
    assert all(answers[slot] == alone[slot][: len(answers[slot])] for slot in range(4))
    assert [len(answers[slot]) for slot in range(4)] == [6, 2, 6, 4]


def test_a_reused_slot_forgets_the_task_before(base, prompts):
    cache = base.model.new_cache(1)
    base.model.prefill(cache, [0], [prompts[2]])
    for _ in range(40):
        base.model.step(cache, [0])
    base.model.prefill(cache, [0], [prompts[1]])
    assert [base.model.step(cache, [0])[0] for _ in range(5)] == generate(base.model, [prompts[1]], 5)[0]


@pytest.mark.parametrize("num_emitted", [1, 4, 40])
def test_forced_tokens_continue_where_the_answer_broke_off(base, prompts, num_emitted):
    whole = generate(base.model, [prompts[0]], num_emitted + 6)[0]
    cache = base.model.new_cache(2)
    base.model.prefill(cache, [1], [prompts[0]])
    base.model.force(cache, 1, whole[:num_emitted])
    assert [base.model.step(cache, [1])[0] for _ in range(6)] == whole[num_emitted:]


def test_an_empty_prompt_is_refused(base, prompts):
    with pytest.raises(PromptError, match="empty"):
        base.model.prefill(base.model.new_cache(2), [0, 1], [prompts[0], []])


def test_low_precision_weights_keep_their_dtype_and_answer_nearly_the_same(base, prompts):
    stored = read_base(base.directory, "bfloat16")
    assert {tensor.dtype for tensor in stored.model.parameters().values()} == {torch.bfloat16}
    assert stored.full_bytes * 2 == base.full_bytes
    exact = logits(base.model, prompts)
    assert (logits(stored.model, prompts) - exact).abs().mean() < 0.1 * exact.abs().mean()


# Counting


def test_counts_sum_to_the_tokens_read_times_top_k_whatever_the_batch(base, prompts):
    together, apart = CountingRecorder(base.model.shape), CountingRecorder(base.model.shape)
    generate(base.model, prompts, 5, together)
    for prompt in prompts:
        generate(base.model, [prompt], 5, apart)
    counts = together.take()
    assert (counts == apart.take()).all()
    read = {"encoder": sum(map(len, prompts)), "decoder": 5 * len(prompts), "layers": sum(map(len, prompts)) + 4 * len(prompts)}
    assert counts.sum(axis=1).tolist() == [read[layer.name.split(".")[0]] * layer.top_k for layer in base.model.shape.layers]
    assert together.take().sum() == 0


def test_no_token_counts_for_the_same_expert_twice(base, prompts):
    class Distinct:
        def record(self, layer, chosen, logits, inputs, gates):
            assert inputs.shape == (logits.shape[0], base.model.shape.d_model)
            assert chosen.shape == gates.shape == (logits.shape[0], base.model.shape.layers[layer].top_k)
            assert (gates > 0).all()
            assert (gates.sum(1) < 1 + 1e-5).all()
            assert all(len(set(row)) == len(row) for row in chosen.tolist())
            assert (logits.gather(1, chosen)[:, -1] >= logits.sort(dim=1, descending=True).values[:, chosen.shape[1] - 1]).all()

    base.model.teacher_forced(prompts, TARGETS, Distinct())


def test_a_merged_model_counts_original_experts(base, prompts):
    recorder = CountingRecorder(base.model.shape)
    merged(base).teacher_forced(prompts, TARGETS, recorder)
    counts = recorder.take()
    assert counts.shape == (len(base.model.shape.layers), 8)
    assert (counts > 0).sum() > len(PAIRS.groups) * len(counts)


def test_gram_statistics_add_over_tasks(base, prompts):
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(0, 4)):
        recorder = GramRecorder(base.model.shape)
        base.model.teacher_forced(prompts[rows], TARGETS[rows], recorder)
        parts.append(recorder.take(1))
    for first, second, both in zip(*parts, strict=True):
        torch.testing.assert_close(torch.tensor(first.gram + second.gram), torch.tensor(both.gram), rtol=1e-4, atol=1e-4)
        assert (first.counts + second.counts == both.counts).all()


# Merging


@pytest.mark.parametrize("method", merge_methods())
def test_copies_merge_to_themselves(base, prompts, method):
    copies = with_stacks(base, duplicated)
    result = merged(copies, method=method)
    for stack, original in zip(result.experts, copies.model.experts, strict=True):
        for name, weight in stack.weights.items():
            torch.testing.assert_close(weight, original.weights[name][:1].expand_as(weight), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits(result, prompts), logits(copies.model, prompts), atol=1e-5, rtol=1e-5)
    assert generate(result, prompts, 8) == generate(copies.model, prompts, 8)


def test_reordering_hidden_units_changes_neither_answers_nor_what_a_merge_gives(base, prompts):
    moved = with_stacks(base, shuffled)
    torch.testing.assert_close(logits(moved.model, prompts), logits(base.model, prompts), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(merged(moved), prompts), logits(merged(base), prompts), atol=1e-4, rtol=1e-4)


def test_merged_rows_may_stand_in_any_order(base, prompts):
    whole = merged(base)
    order = torch.tensor([2, 0, 3, 1])
    turned = [ExpertStack({n: w[order] for n, w in s.weights.items()}, order.argsort()[s.index_map]) for s in whole.experts]
    torch.testing.assert_close(logits(base.model.with_experts(turned), prompts), logits(whole, prompts), atol=1e-5, rtol=1e-5)


def test_experts_numbered_otherwise_answer_the_same_and_are_counted_under_their_new_numbers(base, prompts):
    order = torch.tensor([3, 1, 7, 0, 6, 2, 5, 4])
    rest = rest_of(base)
    for name, tensor in rest.items():
        if any(tensor.shape == router.shape and torch.equal(tensor, router) for router in base.model.routers):
            rest[name] = tensor[order]
    experts = [ExpertStack({n: w[order] for n, w in s.weights.items()}, s.index_map) for s in base.model.experts]
    renumbered = family_of(json.loads(base.config_json)).assemble(json.loads(base.config_json), rest, experts)
    torch.testing.assert_close(logits(renumbered, prompts), logits(base.model, prompts), atol=1e-5, rtol=1e-5)
    counts = [CountingRecorder(base.model.shape) for _ in range(2)]
    for model, recorder in zip((base.model, renumbered), counts, strict=True):
        model.teacher_forced(prompts, TARGETS, recorder)
    assert (counts[0].take()[:, order.numpy()] == counts[1].take()).all()


def test_a_merged_expert_answers_as_copies_of_it_in_every_place(base, prompts):
    whole = merged(base)
    spread = [ExpertStack({n: w[s.index_map] for n, w in s.weights.items()}, torch.arange(8)) for s in whole.experts]
    torch.testing.assert_close(logits(whole, prompts), logits(base.model.with_experts(spread), prompts), atol=1e-5, rtol=1e-5)
    assert generate(whole, prompts, 8) == generate(base.model.with_experts(spread), prompts, 8)


def test_merging_changes_answers_and_frees_exactly_the_bytes_of_the_experts_gone(base, prompts):
    whole = merged(base)
    assert not torch.allclose(logits(whole, prompts), logits(base.model, prompts), atol=1e-3)
    one_expert = [layer.expert_params * 4 for layer in base.model.shape.layers]
    assert base.full_bytes - unique_bytes(whole) == sum(4 * each for each in one_expert)
    shared = set(map(id, base.model.parameters().values())) & set(map(id, whole.parameters().values()))
    assert len(shared) == len(base.model.parameters()) - len(base.model.experts) * len(base.model.experts[0].weights)


def test_shape_counts_every_parameter_once(base):
    experts = sum(layer.num_experts * layer.expert_params for layer in base.model.shape.layers)
    assert base.full_bytes == 4 * (base.model.shape.non_expert_params + experts)


def test_room_for_every_expert_gives_the_full_model_bit_for_bit(base, builder, prompts):
    manifest = builder.build({"left": 0.5, "right": 0.5}, base.full_bytes)
    assert manifest.experts_kept == sum(layer.num_experts for layer in base.model.shape.layers)
    assert torch.equal(logits(builder.model(manifest).model, prompts), logits(base.model, prompts))


def test_rivals_of_a_merge_take_any_expert(base, prompts):
    exact = logits(base.model, prompts)
    errors = [(logits(quantised(base.model, bits), prompts) - exact).abs().mean().item() for bits in (8, 2)]
    assert 0 < errors[0] < errors[1] < (logits(zeroed(base.model), prompts) - exact).abs().mean().item() * 2


def test_training_reaches_every_weight_and_recovery_brings_the_answers_nearer(base, prompts):
    apart = read_base(base.directory).model
    for tensor in apart.parameters().values():
        tensor.requires_grad_(True)
    apart.teacher_forced(prompts, TARGETS).square().mean().backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in apart.parameters().values())
    wanted = {"left": examples(base.tokenizer, base.model.shape, pico_tasks().of_type("left"))}
    _, report = recover(merged(base), base.model, wanted, {"left": 1.0}, RecoveryOptions(steps=8, batch_size=12))
    assert report.last_loss < report.first_loss


# Versions


def test_a_version_is_rebuilt_from_blobs_alone_bit_for_bit(base, builder, prompts):
    options = BuildOptions(method="m-smoe")
    manifest = builder.build({"left": 1.0}, base.full_bytes * 2 // 3, options)
    served = read_model(BlobStore(builder.store.directory, 1 << 30), manifest)
    plan = builder.plan({"left": 1.0}, base.full_bytes * 2 // 3, options)
    expected = base.model.with_experts(merged_experts(base, builder.aligned, plan))
    assert torch.equal(logits(served.model, prompts), logits(expected, prompts))
    assert unique_bytes(served.model) == manifest.model_bytes
    assert served.model.shape == base.model.shape
    assert served.tokenizer.encode("w3 w4") == base.tokenizer.encode("w3 w4")


def test_an_update_shares_what_did_not_change_and_answers_as_the_whole_version(base, builder, prompts):
    left = builder.build({"left": 1.0}, base.full_bytes * 2 // 3)
    right = builder.build({"right": 1.0}, base.full_bytes * 2 // 3)
    assert left.version != right.version
    present = builder.model(left).model
    updated = present.with_experts(read_experts(builder.store, right, present, left))
    assert torch.equal(logits(updated, prompts), logits(builder.model(right).model, prompts))


def test_tensors_that_do_not_make_the_model_are_refused_by_name(base):
    config = json.loads(base.config_json)
    family = family_of(config)
    rest = rest_of(base)
    family.assemble(config, rest, base.model.experts)
    name = sorted(rest)[-1]
    with pytest.raises(CheckpointError, match=f"{name}.*missing"):
        family.assemble(config, {other: tensor for other, tensor in rest.items() if other != name}, base.model.experts)
    with pytest.raises(CheckpointError, match=f"{name}.*shape"):
        family.assemble(config, rest | {name: rest[name].flatten()[:-1]}, base.model.experts)
    with pytest.raises(CheckpointError, match="nobody"):
        family.assemble(config, rest | {"nobody": rest[name]}, base.model.experts)
    with pytest.raises(CheckpointError, match="expert"):
        family.assemble(config, rest, base.model.experts[:-1])


def test_a_swap_between_two_steps_leaves_tasks_in_flight_on_their_version(base, prompts):
    other = merged(base)
    old, new = (greedy(model, prompts, 6) for model in (base.model, other))
    engine = BatchEngine(base.model, base.tokenizer, "old", 2, CountingRecorder)
    for number, prompt in enumerate(prompts):
        engine.submit(GenTask(str(number), tuple(prompt), 6))
    events = engine.step()
    engine.install(other, "new")
    held = [engine.versions]
    while engine.has_work:
        events += engine.step()
        held.append(engine.versions)
    started = {event.task_id: event.version for event in events if isinstance(event, Started)}
    ended = {event.task_id: event for event in events if isinstance(event, Finished)}
    assert started == {"0": "old", "1": "old", "2": "new", "3": "new"}
    assert (held[0], held[-1]) == (("old", "new"), ("new",))
    for number in range(4):
        answer = (old if started[str(number)] == "old" else new)[number]
        assert ended[str(number)].version == started[str(number)]
        assert ended[str(number)].text == base.tokenizer.decode(answer)
        assert ended[str(number)].output_tokens == len(answer)
