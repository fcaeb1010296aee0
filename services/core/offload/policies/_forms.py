"""The two forms in which a published policy comes: as its paper has it, and the strongest that is reasonable in this setting."""

from __future__ import annotations

from collections.abc import Sequence

PAPER, STRONG = "paper", "strong"


def checked_form(form: str, known: Sequence[str] = (PAPER, STRONG)) -> str:
    if form not in known:
        raise ValueError(f"form is {form!r}: choose {', '.join(known)}")
    return form
