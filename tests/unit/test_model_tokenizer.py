"""Prompts to ids and ids to text, in one go and in a stream."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from services.model.errors import PromptError
from services.model.tokenizer import Tokenizer
from tests.unit.pico import MODEL_MAX_LENGTH, tokenizer, word


@pytest.fixture
def words(tmp_path) -> Tokenizer:
    tokenizer().save_pretrained(tmp_path)
    return Tokenizer(tmp_path)


def byte_level(directory) -> Tokenizer:
    alphabet = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = FastTokenizer(models.BPE(alphabet, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.save(str(directory / "tokenizer.json"))
    return Tokenizer(directory)


def test_a_prompt_ends_as_the_tokenizer_ends_it(words):
    assert words.encode(f"{word(0)} {word(4)}") == [3, 7, 1]
    assert words.decode([3, 7, 1, 0]) == f"{word(0)} {word(4)}"


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt_is_refused(words, prompt):
    with pytest.raises(PromptError, match="empty"):
        words.encode(prompt)


def test_a_prompt_longer_than_the_model_reads_is_refused_and_never_cut(words):
    longest = " ".join([word(0)] * (MODEL_MAX_LENGTH - 1))
    assert len(words.encode(longest)) == MODEL_MAX_LENGTH
    with pytest.raises(PromptError, match=f"{MODEL_MAX_LENGTH + 1} tokens, this model reads at most {MODEL_MAX_LENGTH}"):
        words.encode(f"{longest} {word(0)}")


def test_deltas_add_up_to_the_text(words):
    ids = [3, 9, 2, 5, 1]
    assert "".join(words.delta(ids[:count], ids[count]) for count in range(len(ids))) == words.decode(ids)


def test_an_unfinished_character_waits_for_its_last_byte(tmp_path):
    bytes_only = byte_level(tmp_path)
    ids = bytes_only.encode("a€b")
    deltas = [bytes_only.delta(ids[:count], ids[count]) for count in range(len(ids))]
    assert deltas == ["a", "", "", "€", "b"]


def test_files_that_travelled_make_the_same_tokenizer(words):
    again = Tokenizer.from_files(words.files, "a blob")
    assert again.encode(word(7)) == words.encode(word(7))
    assert again.max_prompt_tokens == words.max_prompt_tokens
