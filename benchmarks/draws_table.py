"""What was found of draws and forwards: every seed's rows, as JSON, as tables and as a plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

from benchmarks.draws_chart import Curve, Marks, Panel, Words
from diffmining_core.patches.refinement import SHARE
from diffmining_core.typicality.draws import ANTITHETIC, INDEPENDENT, PAIRED, STRATIFIED

COLOURS = {
    INDEPENDENT: "#4d4d4d",
    STRATIFIED: "#0072b2",
    ANTITHETIC: "#00805c",
    PAIRED: "#c84a00",
}
"""Of every way to spread draws, told apart by colour-blind eyes too."""
IN_ROUNDS = (INDEPENDENT, PAIRED)
"""The ways that adaptive mining is followed with."""
SHARES = (0.5, SHARE, 0.75)


@dataclass(frozen=True)
class Plain:
    """All images under so many draws of one seed; forwards: of each image.

    overlap: share of the labels' top patches that are among the converged ones. squared_error: of
    the scores of all windows, against those of the converged maps.
    """

    seed: int
    spread: str
    draws: int
    top: int
    forwards: float
    overlap: float
    squared_error: float


@dataclass(frozen=True)
class Adaptive:
    """Adaptive mining; share: of a round's images that go on to the next. draws: mean over maps.

    cost: share of the forwards of all draws everywhere. expected: the agreement that the report
    would state.
    """

    seed: int
    spread: str
    share: float
    top: int
    draws: float
    forwards: float
    cost: float
    overlap: float
    expected: float


Rows: TypeAlias = Sequence[Plain] | Sequence[Adaptive]


@dataclass(frozen=True)
class Table:
    """What was found, of every seed, and what there is to know of it."""

    machine: str
    command: str
    facts: dict[str, Any]
    plain: list[Plain]
    adaptive: list[Adaptive]
    converged_error: float

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME.json` and `NAME.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")

    @cached_property
    def tops(self) -> list[int]:
        """The sizes of top that are compared, ascending."""
        return sorted({row.top for row in self.plain})

    @cached_property
    def most(self) -> int:
        """Draws of the plain run that all is held against."""
        return max(row.draws for row in self.plain)

    def plain_of(self, spread: str, draws: int, top: int) -> list[Plain]:
        """The rows of all seeds."""
        wanted = (spread, draws, top)
        return [row for row in self.plain if (row.spread, row.draws, row.top) == wanted]

    def adaptive_of(self, spread: str, share: float, top: int) -> list[Adaptive]:
        """The rows of all seeds."""
        wanted = (spread, share, top)
        return [row for row in self.adaptive if (row.spread, row.share, row.top) == wanted]

    def level(self, top: int) -> float:
        """The overlap that is to be reached: that of independent draws, as many as there are."""
        return _mean(self.plain_of(INDEPENDENT, self.most, top), "overlap")

    def markdown(self) -> str:
        """Both tables, under the machine's name, the command and the facts."""
        exact = _mean(self.plain_of(INDEPENDENT, self.most, self.tops[0]), "squared_error")
        lines = [f"# Forwards for the right top patches, on {self.machine}", ""]
        lines += [f"    {self.command}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        lines += [
            "",
            "## The same draws of every image",
            "",
            "Overlap: share of each label's top patches that are among the converged ones (least "
            "to greatest of the seeds). Error: mean squared error of the scores of all windows "
            "against the converged maps, over that of independent draws of the same number. The "
            f"converged maps' own error, in both, is about {self.converged_error / exact:.0%} of "
            f"the latter at N = {self.most}, or less.",
            "",
            *_table_head(
                ("draws", "N", "forwards per image", "error"),
                [f"overlap, top {top}" for top in self.tops],
            ),
        ]
        numbers = sorted({row.draws for row in self.plain})
        for spread in COLOURS:
            for draws in numbers:
                lines.append(_line(self._plain_cells(spread, draws)))
        lines += [
            "",
            "## In rounds",
            "",
            "Share: of the images of a round that the next one takes further. Cost: forwards, of "
            f"those of N = {self.most} everywhere. "
            "Expected: the agreement that the report of such a run states, before anything is "
            "known of the converged maps. Plain: the overlap of independent draws at "
            f"N = {self.most}.",
            "",
            *_table_head(
                ("draws", "top", "share", "draws per image", "cost"),
                ["overlap", "expected", "plain"],
            ),
        ]
        lines += [
            _line(self._adaptive_cells(spread, share, top))
            for spread in IN_ROUNDS
            for top in self.tops
            for share in SHARES
        ]
        return "\n".join(lines) + "\n"

    def _plain_cells(self, spread: str, draws: int) -> list[str]:
        first = self.plain_of(spread, draws, self.tops[0])
        same = self.plain_of(INDEPENDENT, draws, self.tops[0])
        error = _mean(first, "squared_error") / _mean(same, "squared_error")
        overlaps = [_overlap(self.plain_of(spread, draws, top)) for top in self.tops]
        return [spread, str(draws), f"{first[0].forwards:,.0f}", f"{error:.2f}", *overlaps]

    def _adaptive_cells(self, spread: str, share: float, top: int) -> list[str]:
        rows = self.adaptive_of(spread, share, top)
        return [
            spread,
            str(top),
            f"{share:g}",
            f"{_mean(rows, 'draws'):.1f}",
            f"{_mean(rows, 'cost'):.1%}",
            _overlap(rows),
            f"{_mean(rows, 'expected'):.1%}",
            f"{self.level(top):.1%}",
        ]

    def panels(self) -> list[Panel]:
        """The plot, a panel for each top."""
        numbers = sorted({row.draws for row in self.plain})
        return [
            Panel(
                f"Top {top:,} of each label",
                [
                    Curve(spread, colour, [_point(self.plain_of(spread, n, top)) for n in numbers])
                    for spread, colour in COLOURS.items()
                ],
                [
                    Marks(
                        COLOURS[spread],
                        [_point(self.adaptive_of(spread, share, top)) for share in SHARES],
                        chosen=SHARES.index(SHARE),
                    )
                    for spread in IN_ROUNDS
                ],
                self.level(top),
            )
            for top in self.tops
        ]

    def words(self) -> Words:
        """What is written above the plot."""
        least, chosen, greatest = SHARES
        seeds = self.facts["seeds"]
        return Words(
            title="Top patches that are the right ones",
            below_it=(
                "Share of each label's top patches that are among those of "
                f"{self.facts['converged']}; {self.facts['images']:,} images"
                + (f", means of {seeds} seeds" if seeds > 1 else "")
            ),
            level=f"independent draws at N = {self.most}",
            chosen=f"in rounds, share {chosen:g}",
            others=f"in rounds, share {least:g} and, with more forwards, {greatest:g}",
        )


def _mean(rows: Rows, name: str) -> float:
    return fmean(getattr(row, name) for row in rows)


def _point(rows: Rows) -> tuple[float, float]:
    return _mean(rows, "forwards"), _mean(rows, "overlap")


def _overlap(rows: Rows) -> str:
    found = [row.overlap for row in rows]
    seeds = f" ({min(found):.1%} to {max(found):.1%})" if len(found) > 1 else ""
    return f"{fmean(found):.1%}{seeds}"


def _table_head(names: Sequence[str], more: Sequence[str]) -> list[str]:
    return [_line([*names, *more]), _line(["---"] * (len(names) + len(more)))]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
