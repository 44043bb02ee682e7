"""The scores of all images of a label taken together; with X-rays, a label is a finding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Spread:
    """Mean and population standard deviation over images."""

    mean: float
    std: float

    @classmethod
    def of(cls, values: pa.ChunkedArray) -> Spread:
        """Of one number or more."""
        return cls(pc.mean(values).as_py(), pc.stddev(values).as_py())


@dataclass(frozen=True)
class Finding:
    """The scores of the images of one label, or of all (None); by side (before, after)."""

    label: str | None
    images: int
    chance: Spread
    average_precision: Mapping[str, Spread]
    official_auc_pr: Mapping[str, Spread]


def findings(scores: pa.Table) -> list[Finding]:
    """One for each label of a table of SCORE_SCHEMA, by name."""
    labels = sorted(scores["label"].unique().to_pylist())
    return [_finding(label, of_label(scores, label)) for label in labels]


def all_findings(scores: pa.Table) -> Finding:
    """Over every image under every label of its own; an image of two counts twice."""
    return _finding(None, scores)


def of_label(scores: pa.Table, label: str) -> pa.Table:
    """The rows of one label."""
    return scores.filter(pc.equal(scores["label"], label))


def of_side(scores: pa.Table, side: str) -> pa.Table:
    """The rows of one model."""
    return scores.filter(pc.equal(scores["side"], side))


def sides(scores: pa.Table) -> list[str]:
    """The names of the models, in the order of the table."""
    names: list[str] = scores["side"].unique().to_pylist()
    return names


def examples(scores: pa.Table) -> dict[str, dict[str, Any]]:
    """The images of the highest, median and lowest average precision, as rows by these names.

    scores: of one label. The last side decides; equal ones are ordered by their ids. Of two images
    or one, there is no median or only the highest.
    """
    ranked = of_side(scores, sides(scores)[-1]).sort_by(
        [("average_precision", "descending"), ("image_id", "ascending")]
    )
    last = ranked.num_rows - 1
    places = {"highest": 0, "median": last // 2, "lowest": last}
    if last < 2:
        places = dict(zip(("highest", "lowest"), range(last + 1), strict=False))
    return dict(zip(places, ranked.take(list(places.values())).to_pylist(), strict=True))


def _finding(label: str | None, scores: pa.Table) -> Finding:
    by_side = {side: of_side(scores, side) for side in sides(scores)}
    first = next(iter(by_side.values()))
    return Finding(
        label=label,
        images=first.num_rows,
        chance=Spread.of(first["chance"]),
        average_precision={
            side: Spread.of(rows["average_precision"]) for side, rows in by_side.items()
        },
        official_auc_pr={
            side: Spread.of(rows["official_auc_pr"]) for side, rows in by_side.items()
        },
    )
