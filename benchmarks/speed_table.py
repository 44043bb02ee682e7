"""The table of a speed measurement: its rows, as JSON to keep and as Markdown to read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """What was measured of one thing; None where a number has no meaning.

    plain, here: in `unit`, medians of the rounds. ratios: of each round, how many times as good.
    forwards, tflops, peak_share: rows through the UNet a second, operations a second and their
    share of a matrix product's, here and of the plain loop. memory: the most GB that were held.
    missing: why nothing was measured.
    """

    part: str
    what: str
    unit: str = ""
    plain: float | None = None
    here: float | None = None
    ratios: tuple[float, ...] = ()
    plain_forwards: float | None = None
    forwards: float | None = None
    plain_tflops: float | None = None
    tflops: float | None = None
    plain_peak_share: float | None = None
    peak_share: float | None = None
    plain_memory: float | None = None
    memory: float | None = None
    note: str = ""
    missing: str = ""

    @property
    def ratio(self) -> float | None:
        """The median of the rounds."""
        return statistics.median(self.ratios) if self.ratios else None


@dataclass(frozen=True)
class Table:
    """The rows of one machine, and what there is to know of it and of the settings."""

    machine: str
    facts: dict[str, str]
    rows: list[Row]

    def save(self, folder: Path, name: str) -> None:
        """Write `NAME.json` and `NAME.md`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(
            json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        """The table, under the machine's name and the facts."""
        lines = [f"# Speed on {self.machine}", ""]
        lines += [f"- {name}: {value}" for name, value in self.facts.items()]
        titles = (
            "what",
            "unit",
            "plain loop",
            "here",
            "ratio (each round)",
            "UNet forwards a second: plain, here",
            "TFLOP/s: plain, here",
            "of the product: plain, here",
            "GB at most: plain, here",
            "note",
        )
        lines += ["", _line(titles), _line("---" for _ in titles)]
        lines += [_line(_cells(row)) for row in self.rows]
        return "\n".join(lines) + "\n"


def read_table(path: Path) -> Table:
    """A table that was saved as JSON."""
    read = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**row | {"ratios": tuple(row["ratios"])}) for row in read["rows"]]
    return Table(read["machine"], read["facts"], rows)


def read_tables(folder: Path) -> list[Table]:
    """All that were saved in a folder, by name."""
    return [read_table(path) for path in sorted(folder.glob("speed-*.json"))]


def number(value: float | None) -> str:
    """Three digits that count, a dash for nothing."""
    if value is None:
        return "–"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def _cells(row: Row) -> list[str]:
    if row.missing:
        return [row.what, row.unit, "–", f"not measured: {row.missing}", *["–"] * 5, row.note]
    rounds = ", ".join(f"{ratio:.2f}" for ratio in row.ratios)
    return [
        row.what,
        row.unit,
        number(row.plain),
        number(row.here),
        f"**{row.ratio:.2f}** ({rounds})" if row.ratio is not None else "–",
        _pair(number(row.plain_forwards), number(row.forwards)),
        _pair(number(row.plain_tflops), number(row.tflops)),
        _pair(_share(row.plain_peak_share), _share(row.peak_share)),
        _pair(number(row.plain_memory), number(row.memory)),
        row.note,
    ]


def _pair(plain: str, here: str) -> str:
    return here if plain == "–" else f"{plain}, {here}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
