"""Scores of an answer against its references, each in [0, 1]. Text in, a number out; no model and no task set is known here."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

Scorer = Callable[[str, Sequence[str]], float]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: the normalisation of the SQuAD evaluation (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def accuracy(answer: str, references: Sequence[str]) -> float:
    """1 where the answer is one of the accepted choices, letter case and outer space aside."""
    return float(any(answer.strip().lower() == reference.strip().lower() for reference in references))


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 where the answer equals a reference after SQuAD normalisation."""
    return float(any(normalized(answer) == normalized(reference) for reference in references))


def f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over normalised words, the best over the references (Rajpurkar et al. 2016)."""
    return max((_f1_of_words(normalized(answer).split(), normalized(reference).split()) for reference in references), default=0.0)


def _f1_of_words(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    num_shared = (Counter(answer) & Counter(reference)).total()
    return 2 * num_shared / (len(answer) + len(reference))


SCORERS: Mapping[str, Scorer] = MappingProxyType({"accuracy": accuracy, "exact_match": exact_match, "f1": f1})
