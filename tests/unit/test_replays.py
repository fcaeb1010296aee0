"""Steps recorded once and run again on the same memory: they answer and count as steps do that are told anew each time.

Here what is recorded is simply run again; that a GPU's recording does the same is in `test_on_gpu.py`.
"""

from __future__ import annotations

import pytest
import torch

from services.model.checkpoint import read_base
from services.model.families import families
from services.model.families.replays import MOST_PACKED, Packed, Replays, packed_rows, sources, step_rows
from services.model.recorder import CountingRecorder
from tests.unit.pico import word
from tests.unit.pico_decoders import write_pico

WORDS = ("0 7 20", "31", "1 2 3 4 5 6 7 8 9 50 51", "44 45", "12 13 14 15")
ENDS = {0: 4, 1: 25, 2: 9, 3: 40, 4: 3}  # tokens that each task takes; the longest outgrows its cache


class Recording:
    """Runs a body, and gives it to be run again."""

    def __init__(self):
        self.num_recorded = 0

    def __call__(self, body):
        self.num_recorded += 1
        body()
        return body


@pytest.fixture(scope="module", params=[family.name for family in families()])
def base(request, tmp_path_factory):
    return read_base(write_pico(tmp_path_factory.mktemp(request.param), request.param))


def answered(base, cache, recorder):
    """Tasks join one after the other, in slots out of order, and leave when they have their tokens."""
    model = base.model
    answers: dict[int, list[int]] = {task: [] for task in ENDS}
    prompts = [base.tokenizer.encode(" ".join(word(int(number)) for number in words.split())) for words in WORDS]
    slot_of = {0: 2, 1: 0, 2: 4, 3: 1, 4: 2}
    running: dict[int, int] = {}
    for turn in range(60):
        for task, slot in slot_of.items():
            if turn == 3 * task:
                model.prefill(cache, [slot], [prompts[task]], recorder)
                running[slot] = task
        slots = sorted(running)
        for slot, token in zip(slots, model.step(cache, slots, recorder), strict=True):
            answers[running[slot]].append(token)
            if len(answers[running[slot]]) == ENDS[running[slot]]:
                del running[slot]
    assert not running
    return answers


def test_replayed_steps_give_the_tokens_and_the_counts_of_steps_told_anew(base):
    recording, plain_recorder, recorder = Recording(), CountingRecorder(base.model.shape), CountingRecorder(base.model.shape)
    plain, replayed = base.model.new_cache(5), base.model.new_cache(5)
    replayed.replays = Replays(torch.device("cpu"), (), recording)
    assert answered(base, replayed, recorder) == answered(base, plain, plain_recorder)
    assert (recorder.take() == plain_recorder.take()).all()
    assert 3 <= recording.num_recorded < 20


def test_a_slot_that_is_not_asked_for_is_left_as_it_was(base):
    prompts = [base.tokenizer.encode(word(3)), base.tokenizer.encode(word(4))]
    plain, replayed = base.model.new_cache(2), base.model.new_cache(2)
    replayed.replays = Replays(torch.device("cpu"), (), Recording())
    for cache in (plain, replayed):
        base.model.prefill(cache, [0, 1], prompts)
        base.model.step(cache, [0, 1])
    for _ in range(20):
        assert base.model.step(replayed, [1]) == base.model.step(plain, [1])
    for _ in range(4):
        assert base.model.step(replayed, [0, 1]) == base.model.step(plain, [0, 1])


def test_rows_are_recorded_in_powers_of_two():
    assert [step_rows([slot], 12) for slot in range(12)] == [1, 2, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12]
    assert step_rows([0, 5], 16) == 8
    assert sources([1, 3], 4) == [1, 1, 1, 3]


def test_a_prefill_packs_prompts_and_fills_up_past_the_end_of_the_first():
    packed = Packed.of([[7, 8, 9], [4]], [5, 2])
    assert (packed.num_tokens, packed.num_rows, packed.longest) == (4, 16, 4)
    assert packed.columns[:, :6].tolist() == [
        [7, 8, 9, 4, 7, 7],
        [0, 1, 2, 0, 3, 3],
        [0, 0, 0, 1, -1, -1],
        [5, 5, 5, 2, 5, 5],
        [0, 1, 2, 3, 0, 0],
    ]


def test_prefills_are_recorded_at_powers_of_two_and_between():
    assert [packed_rows(count) for count in (1, 16, 17, 24, 25, 33, 48, 49, 600, 800, 1024)] == [
        16, 16, 24, 24, 32, 48, 48, 64, 768, 1024, 1024,
    ]  # fmt: skip


def test_a_prefill_too_long_to_be_packed_answers_the_same(base):
    prompts = [base.tokenizer.encode(" ".join(word((number + n) % 60) for n in range(20))) for number in range(60)]
    assert sum(map(len, prompts)) > MOST_PACKED
    slots, recording = list(range(60)), Recording()
    plain, replayed = base.model.new_cache(60), base.model.new_cache(60)
    replayed.replays = Replays(torch.device("cpu"), (), recording)
    for _ in range(2):
        base.model.prefill(plain, slots, prompts)
        base.model.prefill(replayed, slots, prompts)
    assert recording.num_recorded == 0
    for _ in range(3):
        assert base.model.step(replayed, slots) == base.model.step(plain, slots)
