"""What an experiment gives back: tables, plots as data, and claims of the paper with what our runs say of them. Draws nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

Cell = str | float | int | None  # None: nothing to show


class Verdict(StrEnum):
    """REPRODUCED: our figures show what is claimed. CONTRADICTED: they show the opposite. NOT_REPRODUCED: they show neither."""

    REPRODUCED = "reproduced"
    NOT_REPRODUCED = "not reproduced"
    CONTRADICTED = "contradicted"


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim of the paper. `verdict` comes from a rule of `rules.py` over figures of this run; it is never typed in."""

    name: str  # short and unique, "jtom-16-percent"
    source: str  # where the paper says it, "abstract", "Table V"
    says: str  # in words
    paper: str  # the paper's figure
    ours: str  # our figure with its interval
    verdict: Verdict
    rule: str  # what decides the verdict, in words
    why: str = ""  # what explains it, in plain words
    headline: bool = False  # among the few that the summary shows


@dataclass(frozen=True, slots=True)
class Table:
    """`name` is its file's name. Rows have as many cells as there are columns; figures stay numbers, so that CSV has all digits."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"table {self.name}: every row needs {len(self.columns)} cells")


@dataclass(frozen=True, slots=True)
class Line:
    """y over x, with half widths of 95 % intervals where they are known. `faint`: context, drawn thin."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    ci95: tuple[float, ...] = ()
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Lines:
    """A panel of lines."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_y: bool = False
    log_x: bool = False


@dataclass(frozen=True, slots=True)
class Bars:
    """A panel of horizontal bars, one a label, with half widths of 95 % intervals. `strong`: labels drawn in the leading colour."""

    title: str
    x_label: str
    labels: tuple[str, ...]
    values: tuple[float, ...]
    ci95: tuple[float, ...] = ()
    strong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Heat:
    """A panel of coloured cells, (len(rows), len(columns)); `numbers`: the value is written into each cell."""

    title: str
    x_label: str
    y_label: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    numbers: bool = False


Panel = Lines | Bars | Heat


@dataclass(frozen=True, slots=True)
class Plot:
    """Panels side by side, `across` in a row, in one picture. `name` is its file's name; `caption` says what to see."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    across: int = 3


@dataclass(frozen=True, slots=True)
class Result:
    """`findings`: two or three plain sentences."""

    findings: Sequence[str]
    tables: Sequence[Table] = field(default_factory=tuple)
    plots: Sequence[Plot] = field(default_factory=tuple)
    claims: Sequence[Claim] = field(default_factory=tuple)
