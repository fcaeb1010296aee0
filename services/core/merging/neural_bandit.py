"""A neural bandit: a small network learns reward from features, and the spread of its last layer says how sure it is.

One hidden layer, trained from the same start on all rows each time, so that equal rows give equal answers. The bound is that of a linear
bandit on the hidden units (a neural-linear bandit), the cheap relative of NeuralUCB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NUM_HIDDEN = 16
NUM_STEPS = 30
STEP_SIZE = 0.1
RIDGE = 0.02
SCALE = 3.0  # of the first weights: shares lie in [0, 1], and units should bend there
SEED = 0


class NeuralBandit:
    def __init__(self, features: Array, rewards: Array) -> None:
        """`features` (num_rows, num_features), `rewards` (num_rows,) in [0, 1]."""
        rng = np.random.default_rng(SEED)
        self._hidden = SCALE * rng.normal(size=(features.shape[1], NUM_HIDDEN)) / np.sqrt(features.shape[1])
        self._offsets = rng.normal(size=NUM_HIDDEN)
        self._mean = float(rewards.mean())
        self._train(features, rewards - self._mean)
        units = self._units(features)
        self._precision = units.T @ units + RIDGE * np.eye(units.shape[1])
        self._weights = np.linalg.solve(self._precision, units.T @ (rewards - self._mean))

    def predicted(self, features: Array) -> Array:
        values: Array = self._mean + self._units(features) @ self._weights
        return values

    def spread(self, features: Array) -> Array:
        """How little is known of each row: 0 in much tried places, about 1/√RIDGE per unit of what was never seen."""
        units = self._units(features)
        values: Array = np.sqrt(np.einsum("nu,nu->n", units, np.linalg.solve(self._precision, units.T).T))
        return values

    def _units(self, features: Array) -> Array:
        units: Array = np.hstack([np.tanh(features @ self._hidden + self._offsets), np.ones((len(features), 1))]) / np.sqrt(NUM_HIDDEN + 1)
        return units

    def _train(self, features: Array, targets: Array) -> None:
        """Gradient steps on the hidden layer, the last layer solved for before each (variable projection)."""
        for _ in range(NUM_STEPS):
            units = self._units(features)
            weights = np.linalg.solve(units.T @ units + RIDGE * np.eye(units.shape[1]), units.T @ targets)
            error = (units @ weights - targets) / len(targets)
            back = np.outer(error, weights[:-1]) * (1.0 - (units[:, :-1] * np.sqrt(NUM_HIDDEN + 1)) ** 2)
            self._hidden -= STEP_SIZE * features.T @ back
            self._offsets -= STEP_SIZE * back.sum(axis=0)
