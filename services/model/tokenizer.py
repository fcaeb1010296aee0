"""Text to token ids and back, from a checkpoint's `tokenizer.json`. Prompts end as the tokenizer ends them; nothing is cut silently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from services.model.errors import CheckpointError, PromptError

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
DEFAULT_MAX_PROMPT_TOKENS = 2048
_NO_LIMIT = 10**6  # checkpoints without a limit write a huge number
_INCOMPLETE = "�"


class Tokenizer:
    """A checkpoint's tokenizer. `max_prompt_tokens` defaults to the checkpoint's `model_max_length`, the end token included."""

    def __init__(self, directory: Path, max_prompt_tokens: int | None = None) -> None:
        self.files = {name: (directory / name).read_bytes() for name in TOKENIZER_FILES if (directory / name).is_file()}
        self._load(str(directory), max_prompt_tokens)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], source: str, max_prompt_tokens: int | None = None) -> Tokenizer:
        """From the bytes of `TOKENIZER_FILES`, as they travel in a blob; `source` is named in errors."""
        tokenizer = cls.__new__(cls)
        tokenizer.files = {name: files[name] for name in TOKENIZER_FILES if name in files}
        tokenizer._load(source, max_prompt_tokens)
        return tokenizer

    def _load(self, source: str, max_prompt_tokens: int | None) -> None:
        if "tokenizer.json" not in self.files:
            cure = "write it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            raise CheckpointError(f"{source}: tokenizer.json is missing; {cure}")
        try:
            self._fast = FastTokenizer.from_str(self.files["tokenizer.json"].decode("utf-8"))
        except Exception as error:  # the library raises bare Exception on a file it cannot parse
            raise CheckpointError(f"{source}: tokenizer.json is not a tokenizer ({error}); copy it again") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        self.max_prompt_tokens = max_prompt_tokens or self._limit(source)

    def _limit(self, source: str) -> int:
        try:
            config = json.loads(self.files.get("tokenizer_config.json", b"{}"))
        except ValueError as error:
            raise CheckpointError(f"{source}: tokenizer_config.json is not JSON ({error}); copy it again") from error
        limit = config.get("model_max_length") if isinstance(config, dict) else None
        if isinstance(limit, int | float) and 0 < limit < _NO_LIMIT:
            return int(limit)
        return DEFAULT_MAX_PROMPT_TOKENS

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt, ended as the model was trained to see it end."""
        if not prompt.strip():
            raise PromptError("prompt: empty; send at least one word")
        ids: list[int] = self._fast.encode(prompt).ids
        if len(ids) > self.max_prompt_tokens:
            raise PromptError(f"prompt: {len(ids)} tokens, this model reads at most {self.max_prompt_tokens}; shorten it")
        return ids

    def encode_continued(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of one text, `answer` a space after `prompt`, cut where the answer begins. Not ended, and of any length."""
        alone: list[int] = self._fast.encode(prompt).ids
        whole: list[int] = self._fast.encode(f"{prompt} {answer}").ids
        num_shared = next((place for place, (one, both) in enumerate(zip(alone, whole, strict=False)) if one != both), len(alone))
        return whole[:num_shared], whole[num_shared:]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        return str(self._fast.decode(list(ids), skip_special_tokens=True)).strip()

    def delta(self, ids_so_far: Sequence[int], new_id: int) -> str:
        """What `new_id` adds to the text. Bytes of an unfinished character wait for the token that finishes it."""
        before = self.decode(ids_so_far).rstrip(_INCOMPLETE)
        return self.decode([*ids_so_far, new_id]).rstrip(_INCOMPLETE)[len(before) :]
