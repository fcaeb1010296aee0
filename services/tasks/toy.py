"""The toy world: five generated task families that echo COPA, MultiRC, SQuAD, WikiQA and WinoGrande, deterministic from a seed.

Each family is a closed-book table: a key of two made-up words has an answer of one to four made-up words, which no rule derives. A
prompt puts the key into one of the family's phrasings with one of its fillers; held-out prompts use phrasings not trained on *for that
key*. Nothing here knows of a tokenizer's ids or of torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.tasks.values import TaskItem, TaskSet

NUM_ANSWER_WORDS = 256
NUM_KEY_WORDS = 56  # for the first and for the second word of a key, in each family
LONGEST_ANSWER_WORDS = 4
MOST_FACTS = 2240  # that a family may have
DEFAULT_NUM_FACTS = 1500  # in each family
PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


@dataclass(frozen=True, slots=True)
class Phrasing:
    """How a family asks: `{a}` and `{b}` take the key, `{f}` one of the fillers."""

    task_type: str
    scorer: str
    templates: tuple[str, ...]
    fillers: tuple[str, ...]

    @property
    def num_variants(self) -> int:
        return len(self.templates) * len(self.fillers)

    def prompt(self, key: tuple[str, str], variant: int) -> str:
        template, filler = divmod(variant, len(self.fillers))
        return self.templates[template].format(a=key[0], b=key[1], f=self.fillers[filler])


PHRASINGS = (
    Phrasing(
        "alternative",
        "accuracy",
        ("because {a} {b} {f} therefore", "{f} {a} {b} caused which outcome", "{a} {b} happened {f} hence", "if {a} {b} {f} then"),
        ("today", "yesterday", "tonight", "again"),
    ),
    Phrasing(
        "facts",
        "exact_match",
        ("passage {f} states {a} {b} are", "according to passage {a} {b} {f}", "{a} {b} {f} passage says", "it states {f} that {a} {b}"),
        ("clearly", "twice", "first", "also"),
    ),
    Phrasing(
        "question",
        "f1",
        ("what is {f} {b} of {a} ?", "{a} has {f} what {b} ?", "name {f} {b} of {a} ?", "tell {f} what {a} {b} is ?"),
        ("the", "their", "any", "this"),
    ),
    Phrasing(
        "sentence",
        "accuracy",
        (
            "sentence {f} on {a} {b} answers",
            "does {a} {b} answer {f} sentence",
            "{f} sentence about {a} {b}",
            "select {f} sentence {a} {b}",
        ),
        ("one", "each", "every", "some"),
    ),
    Phrasing(
        "pronoun",
        "accuracy",
        ("{a} thanked {b} {f} since he", "{a} met {b} {f} while she", "{f} {a} helped {b} but they", "{a} left {b} {f} so he"),
        ("quickly", "gladly", "quietly", "kindly"),
    ),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One row of a family's table, with the variants of its prompt that are kept from training."""

    key: tuple[str, str]
    answer: str
    heldout_variant: int
    calibration_variant: int


@dataclass(frozen=True, slots=True)
class ToyWorld:
    """The tables with their three disjoint sets of prompts: train, held out (scored), calibration (for the merger)."""

    facts: Mapping[str, tuple[Fact, ...]]
    vocabulary: tuple[str, ...]

    @property
    def train(self) -> TaskSet:
        return self._task_set("toy-train", None)

    @property
    def heldout(self) -> TaskSet:
        return self._task_set("toy-heldout", "heldout_variant")

    @property
    def calibration(self) -> TaskSet:
        return self._task_set("toy-calibration", "calibration_variant")

    def _task_set(self, name: str, which: str | None) -> TaskSet:
        items = tuple(item for phrasing in PHRASINGS for item in self._items(phrasing, which))
        return TaskSet(name, items, {phrasing.task_type: phrasing.scorer for phrasing in PHRASINGS})

    def _items(self, phrasing: Phrasing, which: str | None) -> Iterator[TaskItem]:
        for number, fact in enumerate(self.facts[phrasing.task_type]):
            for variant in train_variants(phrasing, fact) if which is None else (getattr(fact, which),):
                item_id = f"{phrasing.task_type}-{number:04d}-{variant:02d}"
                yield TaskItem(phrasing.task_type, item_id, phrasing.prompt(fact.key, variant), (fact.answer,))


def train_variants(phrasing: Phrasing, fact: Fact) -> list[int]:
    kept = (fact.heldout_variant, fact.calibration_variant)
    return [variant for variant in range(phrasing.num_variants) if variant not in kept]


def toy_world(seed: int = 0, num_facts: int = DEFAULT_NUM_FACTS) -> ToyWorld:
    """The world of a seed, with `num_facts` facts in each family. Worlds of one seed are nested: fewer facts are a subset of more."""
    if not 1 <= num_facts <= MOST_FACTS:
        raise ValueError(f"num_facts: {num_facts} is not in 1 to {MOST_FACTS}")
    rng = np.random.default_rng(seed)
    prompt_words = _prompt_words()
    num_words = NUM_ANSWER_WORDS + 2 * NUM_KEY_WORDS * len(PHRASINGS)
    made_up = _made_up_words(rng, num_words, frozenset(prompt_words))
    answer_words, key_words = made_up[:NUM_ANSWER_WORDS], made_up[NUM_ANSWER_WORDS:]
    facts = {}
    for number, phrasing in enumerate(PHRASINGS):
        own_words = key_words[2 * NUM_KEY_WORDS * number : 2 * NUM_KEY_WORDS * (number + 1)]
        every = list(_facts(rng, phrasing, own_words, answer_words))
        kept = np.random.default_rng((seed, number)).permutation(MOST_FACTS)[:num_facts]
        facts[phrasing.task_type] = tuple(every[index] for index in sorted(kept.tolist()))
    return ToyWorld(facts, (PAD, END, UNKNOWN, *made_up, *prompt_words))


def _facts(rng: np.random.Generator, phrasing: Phrasing, key_words: Sequence[str], answer_words: Sequence[str]) -> Iterator[Fact]:
    for place in sorted(rng.choice(NUM_KEY_WORDS**2, size=MOST_FACTS, replace=False).tolist()):
        first, second = divmod(place, NUM_KEY_WORDS)
        length = int(rng.integers(1, LONGEST_ANSWER_WORDS + 1))
        answer = " ".join(answer_words[word] for word in rng.integers(0, len(answer_words), size=length))
        heldout, calibration = rng.choice(phrasing.num_variants, size=2, replace=False).tolist()
        yield Fact((key_words[first], key_words[NUM_KEY_WORDS + second]), answer, heldout, calibration)


def _prompt_words() -> tuple[str, ...]:
    texts = [text for phrasing in PHRASINGS for text in (*phrasing.templates, *phrasing.fillers)]
    return tuple(sorted({word for text in texts for word in text.split() if not word.startswith("{")}))


def _made_up_words(rng: np.random.Generator, num_words: int, taken: frozenset[str]) -> list[str]:
    """Pronounceable words of two or three syllables, all different."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = [consonant + vowel for consonant in consonants for vowel in vowels]
    words: dict[str, None] = {}
    while len(words) < num_words:
        picked = rng.integers(0, len(syllables), size=int(rng.integers(2, 4)))
        word = "".join(syllables[syllable] for syllable in picked)
        if word not in taken:
            words[word] = None
    return list(words)


def write_tokenizer(world: ToyWorld, directory: Path) -> None:
    """An ordinary fast tokenizer of whole words in transformers' form: `</s>` ends every text, unknown words become `<unk>`."""
    ids = {word: number for number, word in enumerate(world.vocabulary)}
    special = [
        {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for number, word in enumerate((PAD, END, UNKNOWN))
    ]
    end = {"id": END, "ids": [ids[END]], "tokens": [END]}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": END, "type_id": 0}},
            ],
            "special_tokens": {END: end},
        },
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": ids, "unk_token": UNKNOWN},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "model_max_length": 32,
        "clean_up_tokenization_spaces": False,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
