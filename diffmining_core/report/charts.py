"""Curves as coordinates, which the pages' templates draw as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 28
_POINTS = 400
_SMOOTHING = 0.05  # of the curve's length, the window of the running mean


@dataclass(frozen=True)
class LossChart:
    """Points are SVG's "x,y x,y", of a line that is not there none; ticks are (px, text)."""

    raw: str
    smooth: str
    held_out: str
    seen: str
    held_out_dots: list[tuple[float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    last_loss: float
    last_held_out: float | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def loss_chart(
    curve: Sequence[tuple[int, float]],
    held_out: Sequence[tuple[int, float]] = (),
    seen: Sequence[tuple[int, float]] = (),
) -> LossChart:
    """The loss of every step, faint, and its running mean; on held-out and trained images."""
    steps = np.array([step for step, _ in curve], dtype=np.float64)
    losses = np.array([loss for _, loss in curve], dtype=np.float64)
    means = _running_mean(losses)
    kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _POINTS)).round().astype(int))
    evaluated = [loss for _, loss in (*held_out, *seen)]
    # A few early losses may tower over all others; they run out of the picture at the top.
    highest = max(float(np.quantile(losses, 0.99)), float(means.max()), *evaluated, 0.0) or 1.0
    first = float(steps[0])
    last = max([first + 1, float(steps[-1]), *(float(step) for step, _ in held_out)])

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / (last - first) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(loss: float) -> float:
        share = min(max(loss / highest, 0), 1)
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    def points(line: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(step)},{y(loss)}" for step, loss in line)

    return LossChart(
        raw=points([(steps[at], losses[at]) for at in kept]),
        smooth=points([(steps[at], means[at]) for at in kept]),
        held_out=points(held_out),
        seen=points(seen),
        held_out_dots=[(x(step), y(loss)) for step, loss in held_out],
        x_ticks=[(x(step), f"{step:,.0f}") for step in _round_ticks(first, last, 5)],
        y_ticks=[(y(loss), f"{loss:g}") for loss in _round_ticks(0, highest, 4)],
        last_loss=float(means[-1]),
        last_held_out=held_out[-1][1] if held_out else None,
    )


@dataclass(frozen=True)
class BinChart:
    """The loss by timestep: pairs of bars (x, y, width, height) in px, ticks as (px, text)."""

    first: list[tuple[float, float, float, float]]
    last: list[tuple[float, float, float, float]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    bottom: int = HEIGHT - _BOTTOM


def bin_chart(
    first: Sequence[float | None], last: Sequence[float | None], timesteps: int = 1000
) -> BinChart | None:
    """Losses in equal parts of the timesteps, early and late side by side; None of none."""
    measured = [loss for loss in (*first, *last) if loss is not None]
    if not measured:
        return None
    highest = max(measured) or 1.0
    step = (WIDTH - _LEFT - _RIGHT) / len(first)
    gap, wide = 0.12 * step, 0.36 * step

    def y(loss: float) -> float:
        return round(HEIGHT - _BOTTOM - loss / highest * (HEIGHT - _TOP - _BOTTOM), 1)

    def bars(
        losses: Sequence[float | None], shift: float
    ) -> list[tuple[float, float, float, float]]:
        bottom = HEIGHT - _BOTTOM
        return [
            (round(_LEFT + at * step + gap + shift, 1), y(loss), round(wide, 1), bottom - y(loss))
            for at, loss in enumerate(losses)
            if loss is not None
        ]

    return BinChart(
        first=bars(first, 0),
        last=bars(last, wide),
        x_ticks=[
            (round(_LEFT + at * step, 1), f"{timesteps * at // len(first):,}")
            for at in range(0, len(first), 2)
        ],
        y_ticks=[(y(loss), f"{loss:g}") for loss in _round_ticks(0, highest, 4)],
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


_NAMES = 96  # px at the right for the lines' names
_NAME_HEIGHT = 14


@dataclass(frozen=True)
class Line:
    """One line of a chart: SVG's "x,y x,y", its points, and where its name stands."""

    name: str
    points: str
    dots: list[tuple[float, float]]
    name_y: float


@dataclass(frozen=True)
class LineChart:
    """Several named lines over the same steps; ticks are (position in px, text).

    zero: the height of 0 in px.
    """

    lines: list[Line]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    zero: float = HEIGHT - _BOTTOM
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _NAMES
    bottom: int = HEIGHT - _BOTTOM


def line_chart(steps: Sequence[float], values: Mapping[str, Sequence[float]]) -> LineChart:
    """Numbers by step, one line a name, from 0, or from the least below it, up to the greatest."""
    highest = max(0.0, *(max(of_line) for of_line in values.values()))
    lowest = min(0.0, *(min(of_line) for of_line in values.values()))
    span = highest - lowest
    if not span:
        highest = span = 1.0
    first, last = steps[0], max(steps[-1], steps[0] + 1)

    def x(step: float) -> float:
        return round(_LEFT + (step - first) / (last - first) * (WIDTH - _LEFT - _NAMES), 1)

    def y(value: float) -> float:
        share = (value - lowest) / span
        return round(HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM), 1)

    names_y = _apart({name: y(of_line[-1]) for name, of_line in values.items()})
    return LineChart(
        lines=[
            Line(
                name=name,
                points=" ".join(f"{x(step)},{y(v)}" for step, v in zip(steps, line, strict=True)),
                dots=[(x(step), y(v)) for step, v in zip(steps, line, strict=True)],
                name_y=names_y[name],
            )
            for name, line in values.items()
        ],
        x_ticks=[(x(step), f"{step:,.0f}") for step in _round_ticks(first, last, 5)],
        y_ticks=[(y(value), f"{value:.6g}") for value in _round_ticks(lowest, highest, 4)],
        zero=y(0),
    )


def _apart(wanted: Mapping[str, float]) -> dict[str, float]:
    """Heights near those wanted at which the names do not overlap."""
    placed: dict[str, float] = {}
    lowest = float("inf")
    for name, height in sorted(wanted.items(), key=lambda pair: -pair[1]):
        lowest = min(height, lowest - _NAME_HEIGHT)
        placed[name] = lowest
    highest = float(_TOP - _NAME_HEIGHT)
    for name in reversed(placed):  # what was pushed out at the top comes down again
        placed[name] = highest = max(placed[name], highest + _NAME_HEIGHT)
    return placed


@dataclass(frozen=True)
class HistogramChart:
    """How often values fall where: bars as (x, y, width, height, whether above 0) in px.

    x_ticks: (px, text). zero: x of 0, None where it is not among the values.
    """

    bars: list[tuple[float, float, float, float, bool]]
    x_ticks: list[tuple[float, str]]
    zero: float | None
    width: int = WIDTH
    height: int = 150
    left: int = 4
    right: int = WIDTH - 4
    bottom: int = 122


def histogram_chart(values: Sequence[float], unit: float = 1.0) -> HistogramChart:
    """Counts of values in equal bins, of which none straddles 0; ticks in units of `unit`.

    A value far from all others would leave the rest one bar: what lies further from the quartiles
    than five times their distance is counted in the last bin of its side.
    """
    scaled = np.asarray(values, np.float64) / unit
    first, third = np.quantile(scaled, (0.25, 0.75))
    reach = 5 * (third - first) or 1.0
    low = max(float(scaled.min()), float(first - reach))
    high = min(float(scaled.max()), float(third + reach))
    bins = int(min(max(np.sqrt(len(scaled)) * 2, 8), 48))
    step = (high - low) / bins or 1.0
    edges = step * np.arange(math.floor(low / step), math.floor(high / step) + 2)
    lowest, highest = float(edges[0]), float(edges[-1])
    counts, _ = np.histogram(np.clip(scaled, lowest, highest), edges)
    chart = HistogramChart([], [], None)
    across, down = chart.right - chart.left, chart.bottom - 6

    def x(value: float) -> float:
        return round(chart.left + (value - lowest) / (highest - lowest) * across, 1)

    tallest = counts.max()
    bars = []
    for edge, count in zip(edges[:-1].tolist(), counts.tolist(), strict=True):
        tall, wide = round(down * count / tallest, 1), round(x(edge + step) - x(edge), 1)
        if count:
            bars.append((x(edge), round(chart.bottom - tall, 1), wide, tall, edge > -step / 2))
    ticks = _round_ticks(lowest, highest, 6)
    return HistogramChart(
        bars,
        x_ticks=[(x(tick), f"{tick:.3g}".replace("-", "−")) for tick in ticks],
        zero=x(0.0) if lowest <= 0 <= highest else None,
    )


STRIP_HEIGHT = 22
"""px of one strip of dots."""
_STRIP_DOTS = 200
_STRIP_TICKS = (0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1)
_GOLDEN = (5**0.5 - 1) / 2  # its multiples fill a strip evenly, whatever the number of dots


@dataclass(frozen=True)
class Strip:
    """One number of each of many images: dots as (x in %, y in px), and their mean in %."""

    name: str
    dots: list[tuple[float, float]]
    mean: float


@dataclass(frozen=True)
class StripGroup:
    """The strips of one name, one beneath the other, and where chance is, in %."""

    name: str
    strips: list[Strip]
    chance: float


@dataclass(frozen=True)
class StripPlot:
    """Groups of strips over one axis from 0, of square roots; ticks are (x in %, text)."""

    groups: list[StripGroup]
    ticks: list[tuple[float, str]]
    height: int = STRIP_HEIGHT


def strip_plot(
    values: Mapping[str, Mapping[str, Sequence[float]]], chance: Mapping[str, float]
) -> StripPlot:
    """Shares of 1 by group and strip, from 0 up to the greatest; chance by group.

    Square roots tell small ones apart too. Of very many, a strip has those at even ranks. Places
    across are shares of the width, so that dots and letters keep their size in a narrow window.
    """
    highest = max(max(of_strip) for strips in values.values() for of_strip in strips.values())
    highest = max(highest, *chance.values()) or 1.0

    def x(value: float) -> float:
        return round(100 * math.sqrt(value / highest), 2)

    def strip(name: str, of_strip: Sequence[float]) -> Strip:
        ranked = np.sort(of_strip)
        kept = np.unique(np.linspace(0, len(ranked) - 1, _STRIP_DOTS).round().astype(int))
        heights = 3 + (STRIP_HEIGHT - 6) * (np.arange(len(kept)) * _GOLDEN % 1)
        dots = [(x(ranked[at]), round(float(y), 1)) for at, y in zip(kept, heights, strict=True)]
        return Strip(name, dots, x(float(np.mean(ranked))))

    return StripPlot(
        groups=[
            StripGroup(
                group,
                [strip(name, of_strip) for name, of_strip in strips.items()],
                x(chance[group]),
            )
            for group, strips in values.items()
        ],
        ticks=[(x(value), f"{value:g}") for value in _STRIP_TICKS if value <= highest],
    )
