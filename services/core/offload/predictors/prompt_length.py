"""Predicts how many tokens a prompt will have where there is no tokenizer: a learnt ratio of tokens to bytes.

The worker tokenises for real and reports the count, which is what the ratio is learnt from.
"""

from __future__ import annotations

DEFAULT_TOKENS_PER_BYTE = 0.25
WEIGHT = 0.05


class PromptLengthPredictor:
    def __init__(self, tokens_per_byte: float = DEFAULT_TOKENS_PER_BYTE) -> None:
        self._tokens_per_byte = tokens_per_byte

    def tokens(self, prompt_bytes: int) -> int:
        return max(1, round(prompt_bytes * self._tokens_per_byte))

    def observe(self, prompt_bytes: int, prompt_tokens: int) -> None:
        if prompt_bytes > 0 and prompt_tokens > 0:
            self._tokens_per_byte += WEIGHT * (prompt_tokens / prompt_bytes - self._tokens_per_byte)
