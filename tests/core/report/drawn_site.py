"""A small mining result drawn from a seed: what the report's tests and the browser's look at."""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.report import SiteSource
from diffmining_core.report.ranking import ImageRanking, rank_images
from diffmining_core.report.source import Losses, PatchFeatures
from diffmining_core.signs import Sign
from diffmining_core.signs.pictures import picture

SIZE = 24
CELL = 8
_TABLES = tempfile.TemporaryDirectory()  # goes with the process
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "../../etc/passwd",
    "東京 / Ünïcode\u202e",
    "a" * 200,
    "CON",
]


@dataclass
class DrawnImages:
    """Images by uri and maps by id; `read` counts how often each image was loaded."""

    by_uri: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    maps: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)

    def load_pixels(self, uri: str) -> NDArray[np.uint8]:
        self.read[uri] = self.read.get(uri, 0) + 1
        return self.by_uri[uri]

    def typicality(self, image_id: str, label: str) -> NDArray[np.float32]:
        return self.maps[image_id]

    def typicality_before(self, image_id: str, label: str) -> NDArray[np.float32] | None:
        return self.maps[image_id] / np.float32(4)


def drawn_source(
    labels: Sequence[str] = ("barn", "tower"),
    images_per_label: int = 8,
    with_before: bool = True,
    drawn: DrawnImages | None = None,
    signs: Sequence[Sign] | None = None,
    sizes: Sequence[int] | None = None,
) -> SiteSource:
    """Discs on plain ground, a disc's patch typical, the ground's not.

    Every label has clusters of these sizes, or one of all but two of its highest patches and one of
    those two. The last image of a label is all black.
    """
    sizes = sizes or (images_per_label - 2, 2)
    of_rank = [cluster for cluster, size in enumerate(sizes) for _ in range(size)]
    drawn = drawn if drawn is not None else DrawnImages()
    rows = [
        row
        for place, label in enumerate(labels)
        for number in range(images_per_label)
        for row in _image_rows(drawn, label, place, number, number == images_per_label - 1)
    ]
    selection = pa.Table.from_pylist(rows)
    clusters = [
        {**row, "cluster": of_rank[row["label_rank"]], "distance": distance}
        for row in rows
        if row["kind"] == "highest"
        for distance in [float(row["label_rank"] * 7 % 5)]
    ]
    summary = [
        {
            "label": label,
            "cluster": cluster,
            "members": members,
            "median_typicality": (3 - 2 * cluster / max(len(sizes) - 1, 1)) * 1e-3,
            "spread": 2e-4 * (1 + cluster),
        }
        for label in labels
        for cluster, members in enumerate(sizes)
    ]
    before = selection.set_column(
        selection.schema.get_field_index("typicality"),
        "typicality",
        pa.array([value.as_py() / 4 for value in selection["typicality"]], pa.float32()),
    )
    return SiteSource(
        title="Drawn discs & <b>nothing</b> else",
        images=1234,
        labels=labels,
        selection=selection,
        clusters=pa.Table.from_pylist(clusters),
        cluster_summary=pa.Table.from_pylist(summary),
        set_aside=pa.table({"uri": ["/x/<script>.png"], "reason": ["truncated: it ends early"]}),
        load_pixels=drawn.load_pixels,
        typicality=drawn.typicality,
        facts={
            "notes": ["k lowered to 2 because only 8 patches"],
            "model": "tiny & <i>built in</i>",
            "unet_forwards": 1234567,
            "parameters": {"draws": 100, "t_range": (0.1, 0.7), "finetune": {"steps": 800}},
            "prompts": {"null": ""},
        },
        before=before if with_before else None,
        typicality_before=drawn.typicality_before if with_before else None,
        truth={
            "average_precision": {"before": 0.1, "after": 0.61, "base_rate": 0.085},
            "hits": {"highest": 0.9, "random": 0.2, "lowest": 0.05},
            "cluster_purity": {labels[0]: [0.875, 0.5]},
        },
        losses=Losses(
            training=[(step, 0.1 + 1 / (2 + step)) for step in range(0, 500, 5)],
            held_out=[(0, 0.5), (200, 0.12), (400, 0.16), (500, 0.21)],
            seen=[(0, 0.5), (200, 0.12), (400, 0.1), (500, 0.09)],
            first_bins=[0.9, 0.7, 0.5, 0.4, None, 0.2, 0.15, 0.1, 0.1, 0.1],
            last_bins=[0.5, 0.3, 0.2, 0.1, 0.1, 0.08, 0.06, 0.05, 0.04, 0.04],
        ),
        preview=(500, drawn_preview()),
        signs=signs if signs is not None else drawn_signs(labels),
        sign_picture=lambda name: drawn_picture(),
        model_card=b"# A model of discs\n",
        ranking=drawn_ranking(drawn, rows),
        features=lambda label: drawn_features(rows, label),
    )


def drawn_ranking(drawn: DrawnImages, rows: Sequence[dict[str, Any]]) -> ImageRanking:
    """The images of the highest patches by the means of their maps, one table for each label."""
    images = [
        {**row, "typicality": float(drawn.maps[row["image_id"]].mean())}
        for row in rows
        if row["kind"] == "highest"
    ]
    path = Path(tempfile.mkdtemp(dir=_TABLES.name)) / "images.parquet"
    labels = list(dict.fromkeys(row["label"] for row in images))
    return rank_images(
        (pa.Table.from_pylist([row for row in images if row["label"] == one]) for one in labels),
        path,
    )


def drawn_features(rows: Sequence[dict[str, Any]], label: str) -> PatchFeatures | None:
    """Of a label's highest patches, alike where their ranks are near; of no patches None."""
    places = [
        (row["image_id"], row["y"], row["x"])
        for row in rows
        if row["kind"] == "highest" and row["label"] == label
    ]
    if not places:
        return None
    angle = 0.1 * np.arange(len(places))
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    return PatchFeatures({place: row for row, place in enumerate(places)}, vectors)


def drawn_signs(labels: Sequence[str]) -> list[Sign]:
    """A note and a warning of every label, and a warning of the run."""
    note: dict[str, Any] = {
        "name": "mixed",
        "severity": "note",
        "what": "Clusters are mixed & <b>loose</b>.",
        "advice": "Try more clusters (--k).",
    }
    warning: dict[str, Any] = {
        "name": "watermark",
        "severity": "warning",
        "what": "Typicality follows a mark that sits at one place of many images.",
        "advice": "Crop or paint over the mark, in all images that bear it.",
        "about": "Top patches in their images; below, that place of each.",
        "picture": "sign-1.webp",
    }
    evidence = "14 of 30 images have one at the same place (correlation 0.97)."
    return [
        *(Sign(label=label, evidence=f"{label}: 97 %.", **note) for label in labels),
        *(Sign(label=label, evidence=evidence, **warning) for label in labels),
        Sign(
            name="memorised",
            label=None,
            severity="warning",
            what="The model has learned its training images by heart.",
            evidence="The loss on held-out images was least after step 200 (0.12) and is 75 % "
            "higher after step 500.",
            advice="Finetune for about 200 steps (--finetune-steps).",
        ),
    ]


def drawn_preview() -> bytes:
    """Generated images, as stored: a PNG."""
    data = io.BytesIO()
    Image.fromarray(np.full((300, 400, 3), 200, np.uint8)).save(data, "PNG")
    return data.getvalue()


def drawn_picture() -> bytes:
    """A sign's picture, as stored."""
    tiles = [np.full((64, 96, 3), 40 * shade, np.uint8) for shade in range(1, 7)]
    data = io.BytesIO()
    picture([tiles, tiles[::-1]]).save(data, "WEBP")
    return data.getvalue()


def _image_rows(
    drawn: DrawnImages, label: str, place: int, number: int, black: bool
) -> list[dict[str, Any]]:
    rng = np.random.default_rng([place, number])
    height, width = (64, 96) if number % 2 else (96, 64)
    uri = f'memory://{place}/{number} "quoted" & <b>.png'
    image_id = hashlib.sha256(uri.encode()).hexdigest()[:32]
    y, x = int(rng.integers(height - SIZE)), int(rng.integers(width - SIZE))
    down, across = np.mgrid[:height, :width]
    disc = np.hypot(down - y - SIZE / 2, across - x - SIZE / 2) < SIZE / 2
    ground, colour = rng.integers(60, 200, (2, 3))
    pixels = np.where(disc[..., None], colour, ground).astype(np.uint8)
    drawn.by_uri[uri] = np.zeros_like(pixels) if black else pixels
    cells = disc.reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3))
    drawn.maps[image_id] = (4e-3 * cells - 1e-3).astype(np.float32)
    row = {"image_id": image_id, "label": label, "uri": uri, "rank": 0, "size": SIZE}
    row |= {"label_rank": number}
    return [
        {**row, "kind": "highest", "y": y, "x": x, "typicality": 3.5e-3 - 1e-4 * number},
        {**row, "kind": "lowest", "y": 0, "x": 0, "typicality": -1e-3},
        {**row, "kind": "random", "y": height - SIZE, "x": width - SIZE, "typicality": 1e-5},
    ]
