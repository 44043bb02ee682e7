"""What is typical of a few labels, as Markdown with a picture for each: for the Prefect UI.

In: a few patches of each label, as uint8 [k, k, 3]. Out: a table that stays small, however many
labels there are.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.figures import Tile, captioned_strip

PICTURED_LABELS = 12
"""Labels that are shown: those with the most images."""
PATCHES_PER_LABEL = 6
TABLE_BYTES = 190_000
"""Of the table with its pictures: patches are drawn smaller where they would take more."""

_TILE_SIDES = (80, 64, 48, 36, 24)  # px


@dataclass(frozen=True)
class TypicalLabel:
    """A label with some of its patches and the typicality to be written below each."""

    label: str
    images: int
    tiles: Sequence[Tile]
    typicality: Sequence[float]


def pictured_labels(counts: Mapping[str, int]) -> list[str]:
    """The labels to show, those with the most images first; counts: images of each label."""
    return sorted(counts, key=lambda label: (-counts[label], label))[:PICTURED_LABELS]


def typical_table(labels: Sequence[TypicalLabel], heading: str) -> str:
    """A Markdown table of the labels, `heading` over their patches; at most `TABLE_BYTES` long."""
    head = [f"| label | images | {heading} |", "|---|---:|---|"]
    table = ""
    for side in _TILE_SIDES:
        table = "\n".join([*head, *(_row(label, side) for label in labels)])
        if len(table.encode()) <= TABLE_BYTES:
            break
    return table


def _row(label: TypicalLabel, side: int) -> str:
    captions = [f"{value:.3g}" for value in label.typicality]
    picture = _png(captioned_strip(label.tiles, captions, side))
    name = markdown_text(label.label)
    return f"| {name} | {label.images:,} | ![](data:image/png;base64,{picture}) |"


def _png(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()
