"""The assignment of largest gain, with and without an auction before it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[attr-defined,unused-ignore]

from services.model.assignment import AUCTION_FROM, best_assignment


def drawn(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, num_rows, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_rows", [1, 2, 48, AUCTION_FROM, AUCTION_FROM + 37])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_it_is_the_one_that_the_hungarian_method_finds(num_rows, scale):
    gain = drawn(num_rows, seed=num_rows) * scale
    assert (best_assignment(gain.numpy()) == linear_sum_assignment(gain.numpy(), maximize=True)[1]).all()


def test_a_hidden_order_is_found():
    order = torch.randperm(AUCTION_FROM, generator=torch.Generator().manual_seed(0))
    weights = drawn(AUCTION_FROM, seed=1)
    assert (best_assignment((weights @ weights[order].T).numpy()) == np.argsort(order.numpy())).all()


@pytest.mark.parametrize("gain", [torch.zeros(600, 600), torch.eye(600), (drawn(600, 2) > 1).float()])
def test_equal_gains_still_give_an_assignment_of_the_largest_sum(gain):
    found, expected = best_assignment(gain.numpy()), linear_sum_assignment(gain.numpy(), maximize=True)[1]
    assert sorted(found) == list(range(600))
    assert gain.numpy()[np.arange(600), found].sum() == gain.numpy()[np.arange(600), expected].sum()
