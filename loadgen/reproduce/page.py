"""The one page: every claim with its verdict, then a section for each experiment. Self-contained: no scripts, nothing points outside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from loadgen.report.canvas import inline
from loadgen.reproduce.values import Verdict

FEW_ROWS = 24  # longer tables are folded
WORDS = {
    Verdict.REPRODUCED: "our figures show what is claimed",
    Verdict.NOT_REPRODUCED: "they show neither it nor its opposite, beyond noise",
    Verdict.CONTRADICTED: "they show the opposite, or the paper's own figures do",
}


def page(documents: Sequence[Mapping[str, Any]], out: Path, setup: Mapping[str, str], *, quick: bool = False) -> str:
    """Of the experiments' documents, in their order; plots are read from their folders. `quick`: of runs that only show that it works."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"cell": cell, "figure": lambda value: isinstance(value, int | float)}
    claims = [claim for told in documents for claim in told["claims"]]
    return environment.get_template("page.html.j2").render(
        documents=documents,
        counts=Counter(claim["verdict"] for claim in claims),
        words={verdict.value: words for verdict, words in WORDS.items()},
        headlines=[claim for claim in claims if claim["headline"]],
        num_claims=len(claims),
        plots={(told["name"], plot["name"]): _svg(out, told["name"], plot["name"]) for told in documents for plot in told["plots"]},
        few_rows=FEW_ROWS,
        setup=setup,
        quick=quick,
    )


def cell(value: str | float | None) -> str:
    """Figures with about three digits."""
    if value is None:
        return "-"
    if isinstance(value, str | int):
        return str(value)
    size = abs(value)
    if 0.0 < size < 0.1:
        return f"{value:.2g}"
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def _svg(out: Path, experiment: str, plot: str) -> Markup:
    return Markup(inline((out / experiment / f"{plot}.svg").read_text(encoding="utf-8"), f"{experiment}-{plot}"))
