"""The loss curve as coordinates, which the page's template draws as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 28
_POINTS = 400
_SMOOTHING = 0.05  # of the curve's length, the window of the running mean


@dataclass(frozen=True)
class LossChart:
    """Points are SVG's "x,y x,y"; ticks are (position in px, text)."""

    raw: str
    smooth: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    last_loss: float
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def loss_chart(curve: Sequence[tuple[int, float]]) -> LossChart:
    """The loss of every step, faint, and its running mean."""
    steps = np.array([step for step, _ in curve], dtype=np.float64)
    losses = np.array([loss for _, loss in curve], dtype=np.float64)
    means = _running_mean(losses)
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _POINTS)).round().astype(int))
    # A few early losses may tower over all others; they run out of the picture at the top.
    highest = max(float(np.quantile(losses, 0.99)), float(means.max())) or 1.0
    first, last = float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1)

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / (last - first) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(loss: float) -> float:
        share = min(max(loss / highest, 0), 1)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    return LossChart(
        raw=" ".join(f"{x(steps[at])},{y(losses[at])}" for at in kept),
        smooth=" ".join(f"{x(steps[at])},{y(means[at])}" for at in kept),
        x_ticks=[(x(step), f"{step:,.0f}") for step in _round_ticks(first, last, 5)],
        y_ticks=[(y(loss), f"{loss:g}") for loss in _round_ticks(0, highest, 4)],
        last_loss=float(means[-1]),
    )


def _running_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the values up to each one, within the window."""
    window = max(1, round(len(values) * _SMOOTHING))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def _round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `count` of them."""
    rough = (high - low) / count
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = int(np.ceil(low / step))
    return [float(n * step) for n in range(first, int(np.floor(high / step + 1e-9)) + 1)]
