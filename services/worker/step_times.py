"""The service model of this edge, fitted while serving: two straight lines, step time against batch size and prefill time against tokens.

A measurement, not a prediction: brokers get the lines in the registry entry and correct them by what they see themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.core.offload.values import StepTimes

HALF_LIFE = 200  # samples after which one weighs half
CLIP = 5.0  # a sample above this multiple of the line is an outlier (another process, a swap) and enters clipped


class LineFit:
    """y = base + slope · x by least squares over samples that fade, on top of warm-up samples that do not; both parts at least 0."""

    def __init__(self, half_life: float = HALF_LIFE) -> None:
        self._keep = 0.5 ** (1 / half_life)
        self._anchor = (0.0, 0.0, 0.0, 0.0, 0.0)  # weight, x, y, xx, xy
        self._fading = (0.0, 0.0, 0.0, 0.0, 0.0)

    def anchor(self, x: float, y: float) -> None:
        self._anchor = _added(self._anchor, x, y)

    def renew(self, samples: Sequence[tuple[float, float]]) -> None:
        """Measured again on purpose: everything before weighs half as much, the warm-up too."""
        self._anchor, self._fading = _halved(self._anchor), _halved(self._fading)
        for x, y in samples:
            self.anchor(x, y)

    def observe(self, x: float, y: float) -> None:
        base, slope = self.line()
        line = base + slope * x
        self._fading = _added(tuple(self._keep * part for part in self._fading), x, min(y, CLIP * line) if line > 0 else y)

    def line(self) -> tuple[float, float]:
        """(base, slope); with a single x ever seen the base takes all."""
        weight, x, y, xx, xy = (a + f for a, f in zip(self._anchor, self._fading, strict=True))
        if weight == 0:
            return 0.0, 0.0
        spread = weight * xx - x * x
        slope = max(0.0, (weight * xy - x * y) / spread) if spread > 1e-9 * max(1.0, xx * weight) else 0.0
        base = (y - slope * x) / weight
        if base < 0:
            return 0.0, xy / xx
        return base, slope


def _halved(sums: tuple[float, ...]) -> tuple[float, float, float, float, float]:
    weight, x, y, xx, xy = (0.5 * part for part in sums)
    return weight, x, y, xx, xy


def _added(sums: tuple[float, ...], x: float, y: float) -> tuple[float, float, float, float, float]:
    return sums[0] + 1, sums[1] + x, sums[2] + y, sums[3] + x * x, sums[4] + x * y


class StepTimesFit:
    """Both lines of one edge, its emulated speed included."""

    def __init__(self) -> None:
        self.step = LineFit()
        self.prefill = LineFit()

    def value(self) -> StepTimes:
        return StepTimes(*self.step.line(), *self.prefill.line())
