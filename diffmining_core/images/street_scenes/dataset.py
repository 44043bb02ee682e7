"""The built-in dataset on disk: a folder of pictures per country and one table of the truth."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.images.street_scenes.catalogue import COUNTRIES
from diffmining_core.images.street_scenes.scene import Box, draw_scene

TRUTH_FILE = "truth.parquet"

TRUTH_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("element", pa.string(), nullable=False),
        pa.field("typical_of", pa.string()),
        pa.field("y0", pa.int32(), nullable=False),
        pa.field("x0", pa.int32(), nullable=False),
        pa.field("y1", pa.int32(), nullable=False),
        pa.field("x1", pa.int32(), nullable=False),
    ]
)
"""One row per element: the picture's path within the dataset's folder (with "/"), its label, the
element, the country it is typical of (null: common), and its pixels [y0, y1) × [x0, x1)."""


def write_dataset(
    folder: Path,
    images_per_country: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `<Country>/<Country>_00001.png` … and `truth.parquet` into `folder`.

    Picture i of a country depends only on (seed, country, i), so a dataset that grows keeps its
    pictures byte by byte. Pictures that the truth table already knows are kept; the others are
    drawn, and the table is written last. `on_progress` is told how many of all pictures are there.
    Raises InputError where the folder holds scenes of another seed.
    """
    known = _known_rows(folder / TRUTH_FILE, seed)
    rows: dict[str, list[dict[str, object]]] = dict(known)
    total = images_per_country * len(COUNTRIES)
    done = 0
    for country in COUNTRIES:
        (folder / country).mkdir(parents=True, exist_ok=True)
        for number in range(1, images_per_country + 1):
            file = f"{country}/{country}_{number:05d}.png"
            if file not in known or not (folder / file).exists():
                rows[file] = _write_picture(folder, file, country, number, seed)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
    if rows.keys() != known.keys():
        _write_truth(folder / TRUTH_FILE, rows, seed)


def scene_generator(seed: int, country: str, number: int) -> np.random.Generator:
    """The generator of picture `number` (from 1) of a country."""
    return np.random.default_rng([seed, COUNTRIES.index(country), number])


def _write_picture(
    folder: Path, file: str, country: str, number: int, seed: int
) -> list[dict[str, object]]:
    """Draw and write one picture; returns its rows of the truth table."""
    scene = draw_scene(scene_generator(seed, country, number), country)
    path = folder / file
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    scene.image.save(unfinished, format="PNG", compress_level=4)
    unfinished.replace(path)
    return [_row(file, country, box) for box in scene.boxes]


def _row(file: str, country: str, box: Box) -> dict[str, object]:
    return {
        "file": file,
        "label": country,
        "element": box.element,
        "typical_of": box.typical_of,
        "y0": box.y0,
        "x0": box.x0,
        "y1": box.y1,
        "x1": box.x1,
    }


def _known_rows(path: Path, seed: int) -> dict[str, list[dict[str, object]]]:
    """The rows of an earlier truth table by file; none where there is no table."""
    if not path.exists():
        return {}
    table = pq.read_table(path)
    written = (table.schema.metadata or {}).get(b"seed", b"").decode()
    if written != str(seed):
        raise InputError(
            f"{path.parent} holds scenes drawn with seed {written or 'unknown'}, and seed {seed} "
            "was asked for: give another folder or that seed."
        )
    rows: dict[str, list[dict[str, object]]] = {}
    for row in table.to_pylist():
        rows.setdefault(row["file"], []).append(row)
    return rows


def _write_truth(path: Path, rows: dict[str, list[dict[str, object]]], seed: int) -> None:
    """Write the truth table, ordered by file, in one step."""
    table = pa.Table.from_pylist(
        [row for file in sorted(rows) for row in rows[file]],
        schema=TRUTH_SCHEMA.with_metadata({"seed": str(seed)}),
    )
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    pq.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)
