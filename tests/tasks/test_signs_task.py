"""The task `signs` at a root whose units are made here: stamped images, maps that see the stamp."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from diffmining_core.clusters.kmeans import cluster_selection
from diffmining_core.images.pixels import content_id
from diffmining_core.patches.scoring import shard_patches
from diffmining_core.patches.selection import TopPatches
from diffmining_core.results.references import Results
from diffmining_core.store.ledger import Attempt, complete, published
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.signs import found_signs, sign_picture, signs
from tasks.units import Done

CELL, SIZE, PATCH, IMAGES, DRAWS = 8, 64, 16, 24, 8
LABELS = ("plain", "stamped")
FINETUNE = Unit("finetune", "test", (), {})


class MadeRoot:
    """A root with the maps of two labels' images in two units, and what follows from them."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "root")
        self.opened = open_root(self.url)
        self.folder = folder
        self.rng = np.random.default_rng(0)
        self.best = TopPatches.empty(IMAGES, 0)

    def put(self, unit: Unit, produce: Callable[[Attempt], None]) -> str:
        complete(self.opened, unit, produce)
        return unit.key

    def results(self, stamped: bool, finetuned: bool) -> Results:
        units = [self._maps(number, stamped) for number in range(2)]
        selection = self.best.table()
        selection_key = self.put(
            Unit("selection", "test", (), {}),
            lambda attempt: attempt.write_table("selection.parquet", selection),
        )
        return Results(
            dataset=(),
            images=len(LABELS) * IMAGES,
            size=SIZE,
            typicality=tuple(units),
            selection=selection_key,
            clusters=tuple((label, self._clusters(selection, label)) for label in LABELS),
            finetune=FINETUNE.key if finetuned else None,
            compared=(),
            typicality_before=(),
            selection_before=None,
        )

    def _maps(self, number: int, stamped: bool) -> str:
        images, means, m2s, labels = [], [], [], []
        for label in LABELS:
            for _ in range(IMAGES // 2):
                pixels = self.rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                peak = self.rng.integers(1, 6, 2)
                if stamped and label == "stamped":
                    pixels[44:60, 44:60] = np.indices((16, 16)).sum(0)[..., None] % 4 * 80
                    peak = np.array([6, 6])
                down, across = np.mgrid[: SIZE // CELL, : SIZE // CELL]
                hill = np.exp(-((down - peak[0]) ** 2 + (across - peak[1]) ** 2) / 2)
                means.append((1e-2 * hill).astype(np.float32))
                m2s.append(np.full_like(means[-1], (1e-3**2) * DRAWS * (DRAWS - 1)))
                images.append(self._image(pixels))
                labels.append(label)
        ids = [image_id for image_id, _ in images]
        maps = RaggedMaps.pack(means, m2s, [0.2] * len(ids), ids, labels, DRAWS)
        patches = shard_patches(maps, CELL, PATCH, per_image=1, seed=0)
        uris = {(i, label): uri for (i, uri), label in zip(images, labels, strict=True)}
        self.best = self.best.add(patches, uris, str(number))
        return self.put(
            Unit("typicality", "test", (), {"number": number}),
            lambda attempt: write_maps(attempt, maps),
        )

    def _image(self, pixels: np.ndarray[Any, Any]) -> tuple[str, str]:
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "PNG")
        image_id = content_id(data.getvalue())
        path = self.folder / f"{image_id}.png"
        path.write_bytes(data.getvalue())
        return image_id, str(path)

    def _clusters(self, selection: pa.Table, label: str) -> str:
        mask = (np.array(selection["label"].to_pylist()) == label) & (
            np.array(selection["kind"].to_pylist()) == "highest"
        )
        rows = selection.filter(pa.array(mask))
        around = np.eye(8)[LABELS.index(label)]
        vectors = (around + 0.1 * self.rng.standard_normal((len(rows), 8))).astype(np.float32)
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
        features = self.put(
            Unit("features", "test", (), {"label": label}),
            lambda attempt: attempt.write_table(
                "features.parquet", rows.append_column("feature", column)
            ),
        )
        return self.put(
            Unit("clusters", "test", (features,), {}),
            lambda attempt: attempt.write_table(
                "clusters.parquet", cluster_selection(rows, vectors, 2)
            ),
        )

    def finetuned(self, held_out: dict[str, list[float]], ids: list[str]) -> None:
        def produce(attempt: Attempt) -> None:
            attempt.write_json(
                "losses.json",
                {
                    "step": [0],
                    "loss": [0.2],
                    "bins": {"step": [], "loss": []},
                    "held_out": held_out,
                },
            )
            attempt.write_json("held_out.json", ids)

        self.put(FINETUNE, produce)


@pytest.fixture
def made(tmp_path: Path) -> MadeRoot:
    return MadeRoot(tmp_path)


def test_a_healthy_run_has_no_sign(made: MadeRoot) -> None:
    results = made.results(stamped=False, finetuned=True)
    made.finetuned({"step": [0, 9, 19], "loss": [3.0, 2.0, 1.0], "seen": [3.0, 2.0, 1.0]}, [])
    done = signs.fn(made.url, results, CELL)
    assert found_signs(made.url, done.key) == []
    assert done.counts == {"signs": 0}


def test_a_stamp_is_found_shown_and_found_again_without_looking(made: MadeRoot) -> None:
    results = made.results(stamped=True, finetuned=False)
    done = signs.fn(made.url, results, CELL)
    (sign,) = found_signs(made.url, done.key)
    assert (sign.name, sign.label) == ("watermark", "stamped")
    assert sign.picture
    with Image.open(io.BytesIO(sign_picture(made.opened, done.key, sign.picture))) as picture:
        assert picture.format == "WEBP"
        assert picture.height > 2 * 100
    assert signs.fn(made.url, results, CELL) == Done(
        "signs", done.key, False, done.seconds, done.counts
    )
    assert published(made.opened, "signs") == {done.key}


def test_losses_that_rose_on_held_out_images_come_first(made: MadeRoot) -> None:
    results = made.results(stamped=True, finetuned=True)
    made.finetuned(
        {"step": [0, 9, 19], "loss": [3.0, 2.0, 2.5], "seen": [3.0, 2.0, 1.0]}, ["unknown"]
    )
    done = signs.fn(made.url, results, CELL)
    found = found_signs(made.url, done.key)
    assert [sign.name for sign in found] == ["memorised", "watermark"]
    assert "after step 9" in found[0].evidence
