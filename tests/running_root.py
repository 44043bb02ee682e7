"""A root as a run leaves it on its way: indexed, then measured, then with its page."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "core" / "report"))
from drawn_site import drawn_source

from diffmining_core.patches.scoring import PATCH_SCHEMA
from diffmining_core.recipes import MINED
from diffmining_core.report.page import render_index, write_site
from diffmining_core.results.references import RESULTS, Results, Shard
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import open_run, plan_stage
from diffmining_core.store.units import Unit
from tasks.index import dataset_shards, good_images, index
from tasks.report import PLACE, ROOT_PAGE, publish_page

LABELS = ("<b>barn", "tower")
SIDE = 64
OTHER = Unit("typicality", "t", ("images of another shard", "model"), {"size": SIDE})
"""Is planned, and not made unless a test makes it."""
NOTHING = Results((), 0, SIDE, (), "", (), None, (), (), None)
"""What a drawn page was made from."""


def begin(url: str, folder: Path) -> Shard:
    """Index four drawn images in `folder` at the root, whose dataset is called `two buildings`."""
    dataset = folder / "two buildings"
    for label, colour in zip(LABELS, ("teal", "orange"), strict=True):
        place = dataset / label
        place.mkdir(parents=True)
        for number in range(2):
            pixels = Image.new("RGB", (SIDE, SIDE), colour)
            pixels.putpixel((number, 0), (255, 255, 255))
            pixels.save(place / f"{number}.png")
    open_run(open_root(url), {"dataset": str(dataset)})
    state = index.fn(url, str(dataset), None, MINED, 1000, 0.25)[-1]
    (shard,) = dataset_shards(url, state.key, state.stage)
    return shard


def measure(url: str, shard: Shard) -> None:
    """Publish maps and patches of the shard, as one of two that are planned."""
    root = open_root(url)
    maps = Unit("typicality", "t", (shard.content_id, "model"), {"size": SIDE})
    plan_stage(root, "typicality", [maps.key, OTHER.key])
    complete(root, maps, lambda attempt: attempt.write_bytes("maps", b"maps"))
    images = good_images(root, shard)

    def produce(attempt: Attempt) -> None:
        rows = [
            dict(zip(PATCH_SCHEMA.names, row, strict=True))
            for place, image in enumerate(images)
            for row in [
                (image.image_id, image.label, "highest", 0, 0, 0, 16, 0.01 * (1 + place)),
                (image.image_id, image.label, "lowest", 0, 0, 16, 16, 9.0),
            ]
        ]
        attempt.write_table("patches.parquet", pa.Table.from_pylist(rows, schema=PATCH_SCHEMA))

    for version in ("0", "1"):  # as after an upgrade: the later ones are shown
        complete(root, Unit("patches", version, (maps.key,), {"size": 16}), produce)


def make_page(url: str) -> str:
    """Publish a drawn page at the root; returns the folder of its files, relative to the root."""
    root, source = open_root(url), drawn_source(labels=["barn", "tower"])
    unit = Unit("report", "r", (), {})

    def produce(attempt: Attempt) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_site(source, Path(folder))
            attempt.write_folder(Path(folder))
        attempt.write_bytes(ROOT_PAGE, render_index(source, PLACE).encode())
        attempt.write_json(RESULTS, asdict(NOTHING))

    manifest = complete(root, unit, produce)
    publish_page(url, unit.key)
    return manifest.attempt


def finish(url: str) -> None:
    """Make what is still missing of what was planned."""
    complete(open_root(url), OTHER, lambda attempt: attempt.write_bytes("maps", b"maps"))
