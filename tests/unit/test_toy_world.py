"""The toy world and the scorers: determinism, disjoint prompts, and answers that nothing but the tables gives away."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
from tokenizers import Tokenizer as FastTokenizer

from services.tasks.scoring import SCORERS, accuracy, exact_match, f1, normalized
from services.tasks.toy import LONGEST_ANSWER_WORDS, NUM_ANSWER_WORDS, PHRASINGS, toy_world, train_variants, write_tokenizer

WORLD = toy_world(seed=3, num_facts=300)


def test_the_same_seed_gives_the_same_world_and_another_seed_another():
    assert toy_world(seed=3, num_facts=300) == WORLD
    assert toy_world(seed=4, num_facts=300).facts != WORLD.facts


def test_a_smaller_world_is_a_subset_of_a_larger_one():
    for task_type, facts in toy_world(seed=3, num_facts=100).facts.items():
        assert set(facts) < set(WORLD.facts[task_type])


def test_five_families_have_as_many_facts_each_and_a_known_scorer():
    assert sorted(WORLD.facts) == ["alternative", "facts", "pronoun", "question", "sentence"]
    assert {len(facts) for facts in WORLD.facts.values()} == {300}
    assert set(WORLD.heldout.scorers.values()) == {"accuracy", "exact_match", "f1"} <= set(SCORERS)


def test_train_heldout_and_calibration_prompts_are_disjoint_and_cover_the_same_facts():
    prompts = [{item.prompt for item in tasks.items} for tasks in (WORLD.train, WORLD.heldout, WORLD.calibration)]
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]
    answers = [{(item.task_type, *item.references) for item in tasks.items} for tasks in (WORLD.train, WORLD.heldout, WORLD.calibration)]
    assert answers[0] == answers[1] == answers[2]
    assert len(WORLD.heldout.items) == len(WORLD.calibration.items) == 1500


def test_every_prompt_of_a_family_is_different():
    for phrasing in PHRASINGS:
        variants = [phrasing.prompt(("kava", "lomi"), variant) for variant in range(phrasing.num_variants)]
        assert len(set(variants)) == phrasing.num_variants == 16
        assert all(5 <= len(variant.split()) <= 7 for variant in variants)


def test_item_ids_are_unique_within_a_set():
    for tasks in (WORLD.train, WORLD.heldout, WORLD.calibration):
        assert len({item.item_id for item in tasks.items}) == len(tasks.items)


def test_answers_vary_in_length_and_come_from_a_large_set():
    answers = [fact.answer.split() for facts in WORLD.facts.values() for fact in facts]
    lengths = Counter(map(len, answers))
    assert set(lengths) == set(range(1, LONGEST_ANSWER_WORDS + 1))
    assert min(lengths.values()) > 0.2 * len(answers)
    assert len({word for answer in answers for word in answer}) == NUM_ANSWER_WORDS


def test_no_word_of_a_key_gives_its_answer_away():
    """The commonest first word of an answer, given one word of the key, stands in few of that word's facts."""
    for facts in WORLD.facts.values():
        for part in (0, 1):
            groups: dict[str, list[str]] = {}
            for fact in facts:
                groups.setdefault(fact.key[part], []).append(fact.answer.split()[0])
            hits = sum(max(Counter(words).values()) for words in groups.values() if len(words) > 1)
            assert hits / len(facts) < 0.35


def test_families_share_answer_words_but_no_key_words():
    keys = {name: {word for fact in facts for word in fact.key} for name, facts in WORLD.facts.items()}
    assert sum(len(words) for words in keys.values()) == len(set().union(*keys.values()))
    answers = [{word for fact in facts for word in fact.answer.split()} for facts in WORLD.facts.values()]
    assert len(set.intersection(*answers)) > 150


def test_kept_variants_are_not_trained_on():
    for phrasing in PHRASINGS:
        for fact in WORLD.facts[phrasing.task_type]:
            assert fact.heldout_variant != fact.calibration_variant
            assert len(train_variants(phrasing, fact)) == phrasing.num_variants - 2


def test_the_tokenizer_knows_every_word_and_ends_every_text(tmp_path):
    write_tokenizer(WORLD, tmp_path)
    tokenizer = FastTokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for item in (*WORLD.heldout.items, *WORLD.calibration.items):
        ids = tokenizer.encode(item.prompt).ids
        assert ids[-1] == 1
        assert 2 not in ids
        assert tokenizer.decode(tokenizer.encode(item.references[0]).ids) == item.references[0]
    assert tokenizer.encode("quite unheard of").ids.count(2) >= 2
    assert tokenizer.get_vocab_size() == len(WORLD.vocabulary)


def test_the_tokenizer_loads_in_transformers(tmp_path):
    from transformers import AutoTokenizer

    write_tokenizer(WORLD, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "switch_transformers"}))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    item = WORLD.heldout.items[0]
    ids = tokenizer(item.prompt)["input_ids"]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, ids[-1]) == (0, 1, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == item.prompt


@pytest.mark.parametrize("num_facts", [0, 2241])
def test_more_facts_than_keys_are_refused(num_facts):
    with pytest.raises(ValueError, match=f"num_facts: {num_facts}"):
        toy_world(num_facts=num_facts)


def test_squad_normalisation_drops_case_articles_and_punctuation():
    assert normalized("  The Kava, of a LOMI! ") == "kava of lomi"


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [("Choice1 ", ["choice1"], 1.0), ("choice2", ["choice1"], 0.0), ("the choice1", ["choice1"], 0.0), ("x", [], 0.0)],
)
def test_accuracy_takes_the_choice_as_it_stands(answer, references, expected):
    assert accuracy(answer, references) == expected


def test_exact_match_takes_any_reference():
    assert exact_match("The kava.", ["lomi", "kava"]) == 1.0
    assert exact_match("kava lomi", ["lomi", "kava"]) == 0.0


def test_f1_is_the_best_over_references():
    assert f1("kava lomi", ["kava"]) == pytest.approx(2 / 3)
    assert f1("kava lomi", ["zuzu", "lomi kava"]) == 1.0
    assert f1("kava kava", ["kava zuzu"]) == pytest.approx(0.5)
    assert f1("", ["kava"]) == 0.0
    assert f1("the", ["a"]) == 1.0
    assert math.isclose(f1("zuzu", ["kava"]), 0.0)
    assert f1("kava", []) == 0.0
