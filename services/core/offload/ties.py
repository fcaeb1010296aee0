"""The row that is lowest in one column, ties broken by the next column and at last by the lowest id. Equal to within rounding is a tie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.core.offload.table import Column

TIE_S = 1e-9


def lowest_rows(*columns: Column) -> NDArray[np.intp]:
    """Rows that tie in every column, by ascending row. What is not a number is worse than anything."""
    rows = np.arange(len(columns[0]))
    for column in columns:
        values = np.where(np.isnan(column[rows]), np.inf, column[rows])
        rows = rows[values <= values.min() + TIE_S]
    return rows


def lowest_row(*columns: Column) -> int:
    return int(lowest_rows(*columns)[0])
