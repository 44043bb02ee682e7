"""A parallel dataset drawn from a seed: what the tests of its page look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from diffmining_core.clusters.joint import JOINT_SCHEMA
from diffmining_core.clusters.trend import patch_colour, trend_table
from diffmining_core.report.parallel import Parallel

SIZE = 24
SIDE = 64
MEMBERS = (9, 7, 3)
"""Of each cluster; the last is small."""
TRUTH = {
    "pure": 0.8,
    "one_kind": 2 / 3,
    "by_chance": 0.4,
    "kinds": {"roof": 0.4, "<b>lamp</b>": 0.3},
    "clusters": [
        {"cluster": 0, "members": 9, "kind": "roof", "purity": 1.0},
        {"cluster": 1, "members": 7, "kind": "<b>lamp</b>", "purity": 6 / 7},
        {"cluster": 2, "members": 3, "kind": None, "purity": 0.0},
    ],
}


def drawn_parallel(
    labels: Sequence[str], members: Sequence[int] = MEMBERS, truth: dict[str, Any] | None = TRUTH
) -> Parallel:
    """Squares on grey, of a colour of their own in each label and cluster; an image a sequence."""
    cluster = np.repeat(np.arange(len(members)), members)
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = [
        {
            "image_id": f"{number:032x}",
            "label": labels[number % len(labels)],
            "rank": 0,
            "y": int(rng.integers(0, SIDE - SIZE)),
            "x": int(rng.integers(0, SIDE - SIZE)),
            "size": SIZE,
            "cotypicality": 1e-3 * (len(members) - of) + 1e-5 * number,
            "labels": sorted(labels),  # in an order of their own
            "typicality": [1e-3 * sorted(labels).index(label) for label in sorted(labels)],
            "own": [labels[number % len(labels)]],
            "cluster": int(of),
            "distance": 0.01 * number,
        }
        for number, of in enumerate(cluster)
    ]
    look = drawn_look(rows, labels)
    colours = {
        label: np.stack(
            [
                patch_colour(
                    look(row["image_id"], row["label"], label)[row["y"] :, row["x"] :][:SIZE, :SIZE]
                )
                for row in rows
            ]
        )
        for label in labels
    }
    return Parallel(
        title="Streets in <b>parallel</b>",
        labels=labels,
        clusters=pa.Table.from_pylist(rows, schema=JOINT_SCHEMA),
        trend=trend_table(cluster.astype(np.int32), colours),
        facts={"notes": ["2 images are <not> translated."], "dataset": {"folder": "/x/<streets>"}},
        look=look,
        truth=truth,
    )


def drawn_look(
    rows: Sequence[dict[str, Any]], labels: Sequence[str]
) -> Callable[[str, str, str], NDArray[np.uint8]]:
    """The image of each sequence under each label."""
    by_id = {row["image_id"]: row for row in rows}

    def look(image_id: str, own: str, label: str) -> NDArray[np.uint8]:
        row, column = by_id[image_id], list(labels).index(label)
        assert own == row["label"]
        pixels = np.full((SIDE, SIDE, 3), 128, np.uint8)
        pixels[row["y"] :, row["x"] :][:SIZE, :SIZE] = square(row["cluster"], column)
        return pixels

    return look


def square(cluster: int, column: int) -> tuple[int, int, int]:
    """The colour of the squares of a cluster under the label of a column."""
    return (40 + 60 * cluster) % 256, (250 - 40 * column) % 256, (70 * column) % 256
