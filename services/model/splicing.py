"""More calibration text from the little there is: the beginning of one prompt with the end of another, answered by the base model itself.

What a compressed expert needs to be fitted to are inputs like those it will get and what the base model makes of them; both can be had
for prompts that nobody asked. Draws from calibration prompts only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.model.families.base import MoeModel
from services.model.greedy import greedy
from services.model.recovery import Example

_SEED = 0
_FEWEST_TOKENS = 2  # that each of the two prompts gives


def spliced(model: MoeModel, examples: Sequence[Example], count: int) -> list[Example]:
    """`count` new examples; fewer where prompts are too short to be cut."""
    rng = np.random.default_rng(_SEED)
    long = [example.prompt for example in examples if len(example.prompt) >= 2 * _FEWEST_TOKENS]
    if not long:
        return []
    prompts = [_spliced(long[rng.integers(len(long))], long[rng.integers(len(long))], rng) for _ in range(count)]
    longest = max(len(example.target) for example in examples)
    answers = greedy(model, prompts, longest)
    return [Example(prompt, tuple(answer)) for prompt, answer in zip(prompts, answers, strict=True)]


def _spliced(first: tuple[int, ...], second: tuple[int, ...], rng: np.random.Generator) -> tuple[int, ...]:
    """Cut at the same place in both, so that no prompt gets longer than the second."""
    cut = int(rng.integers(_FEWEST_TOKENS, min(len(first), len(second)) - _FEWEST_TOKENS + 1))
    return first[:cut] + second[cut:]
