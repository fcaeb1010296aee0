"""Figures as people read them."""

import pytest

from loadgen.units import in_bytes


@pytest.mark.parametrize(
    ("num_bytes", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (94_460, "94.46 kB"), (2e9, "2.00 GB"), (3.2e12, "3200.00 GB")]
)
def test_bytes_are_told_in_the_largest_unit_that_they_fill(num_bytes, said):
    assert in_bytes(num_bytes) == said
