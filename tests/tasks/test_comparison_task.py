"""What the comparison measures: seconds by unit, hits by part, purity of Doersch's elements."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patterned_scenes import CELL, PATTERN, SIZE, indexed, write_scenes

from diffmining_core.baselines.doersch import ELEMENT_SCHEMA
from diffmining_core.images.street_scenes.dataset import TRUTH_SCHEMA
from diffmining_core.patches.scoring import HIGHEST, PATCH_SCHEMA
from diffmining_core.store.ledger import Attempt, complete, finished
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import clip_ranking, doersch, patches
from tasks.comparison import Compared, Method, Part, compared_numbers, comparison
from tasks.evaluation import PLANTED, read_truth
from tasks.index import good_images
from tasks.selection import select


class MadeRoot:
    """A root with maps and patches that are on the patterns, or beside them, as a test says."""

    def __init__(self, folder: Path) -> None:
        self.corners = write_scenes(folder / "scenes", 4)
        rows = [
            {"file": f"{label}/{name}", "label": label, "element": "stripes", "typical_of": label}
            | {"y0": y, "x0": x, "y1": y + PATTERN, "x1": x + PATTERN}
            for name, (y, x) in self.corners.items()
            for label in [name.partition("-")[0]]
        ]
        truth = folder / "scenes" / "truth.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=TRUTH_SCHEMA), truth)
        self.truth = read_truth(PLANTED, str(truth))
        self.url = str(folder / "root")
        self.opened = open_root(self.url)
        self.dataset = indexed(self.url, folder / "scenes", 4)

    def place(self, uri: str, right: bool) -> tuple[int, int]:
        """Of a patch: the pattern, or the corner that is farthest from it."""
        y, x = self.corners[uri.rpartition("/")[2]]
        if right:
            return y, x
        return tuple(0 if at > (SIZE - PATTERN) // 2 else SIZE - PATTERN for at in (y, x))  # type: ignore[return-value]

    def patches(self, name: str, right: bool) -> list[str]:
        """The keys of the patches of each shard."""
        keys = []
        for shard in self.dataset:
            rows = []
            for image in good_images(self.opened, shard):
                y, x = self.place(image.uri, right)
                about = {"image_id": image.image_id, "label": image.label, "kind": HIGHEST}
                rows.append(about | {"rank": 0, "y": y, "x": x, "size": PATTERN, "typicality": 1.0})
            table = pa.Table.from_pylist(rows, schema=PATCH_SCHEMA)
            keys.append(self.unit(patches.STAGE, f"{name} {shard.key}", {patches.TABLE: table}))
        return keys

    def maps(self, right: bool) -> list[str]:
        """The keys of maps of each shard that are 1 in the pattern, or everywhere but there."""
        keys = []
        for shard in self.dataset:
            images = good_images(self.opened, shard)
            maps = []
            for image in images:
                y, x = self.place(image.uri, True)
                inside = np.zeros((SIZE, SIZE), np.float32)
                inside[y : y + PATTERN, x : x + PATTERN] = 1
                cells = inside.reshape(SIZE // CELL, CELL, -1, CELL).mean((1, 3))
                maps.append(cells if right else -cells)
            ids, labels = zip(*((one.image_id, one.label) for one in images), strict=True)
            packed = RaggedMaps.pack(maps, maps, [0.0] * len(maps), ids, labels, 1)
            unit = Unit(clip_ranking.STAGE, "test", (shard.key, str(right)), {})
            complete(self.opened, unit, lambda attempt, p=packed: write_maps(attempt, p))  # type: ignore[misc]
            keys.append(unit.key)
        return keys

    def unit(self, stage: str, name: str, tables: dict[str, pa.Table]) -> str:
        def produce(attempt: Attempt) -> None:
            for file, table in tables.items():
                attempt.write_table(file, table)

        unit = Unit(stage, "test", (name,), {})
        complete(self.opened, unit, produce)
        return unit.key

    def elements(self, right: int) -> str:
        """Of each label one element; of its windows the first `right` are on the pattern."""
        rows = []
        for label in ("fall", "rise"):
            images = [
                image
                for shard in self.dataset
                for image in good_images(self.opened, shard)
                if image.label == label
            ]
            for match, image in enumerate(images):
                y, x = self.place(image.uri, match < right)
                about = {"label": label, "element": 0, "match": match, "with_label": 4}
                rows.append(
                    about | {"first_with_label": 4, "image_id": image.image_id, "y": y, "x": x}
                )
        table = pa.Table.from_pylist(rows, schema=ELEMENT_SCHEMA)
        return self.unit(doersch.ELEMENTS_STAGE, f"{right} right", {doersch.ELEMENTS: table})

    def part(self, shards: int, keys: list[str], *more: tuple[str, str]) -> Part:
        selection = select.fn(self.url, self.dataset[:shards], keys[:shards], 10, 0).key
        return Part(shards, selection, (*((patches.STAGE, key) for key in keys[:shards]), *more))

    def method(self, name: str, right: bool, elements: int) -> Method:
        keys, maps = self.patches(name, right), tuple(self.maps(right))
        parts = (self.part(1, keys), self.part(2, keys))
        return Method(name, parts, (), (clip_ranking.STAGE, maps), elements=self.elements(elements))

    def compared(self, *methods: Method) -> Compared:
        return Compared(
            "Ways", self.truth, tuple(self.dataset), methods, SIZE, CELL, PATTERN, {"notes": []}
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRoot:
    return MadeRoot(tmp_path_factory.mktemp("compared"))


def test_each_way_is_held_against_the_truth(made: MadeRoot) -> None:
    right, wrong = made.method("right", True, elements=3), made.method("wrong", False, elements=1)
    done = comparison.fn(made.url, made.compared(right, wrong))
    numbers = {one["name"]: one for one in compared_numbers(made.url, done.key)["methods"]}
    assert (numbers["right"]["hits"], numbers["wrong"]["hits"]) == (1, 0)
    assert [part["hits"] for part in numbers["right"]["growth"]] == [1, 1]
    assert [part["images"] for part in numbers["right"]["growth"]] == [4, 8]
    # A map of cells is not as sharp as the pattern's border.
    assert numbers["right"]["average_precision"] > 0.9 > 0.2 > numbers["wrong"]["average_precision"]
    assert numbers["right"]["purity"] == {"fall": [0.75], "rise": [0.75]}
    assert numbers["wrong"]["best_purity"] == 0.25
    base_rate = compared_numbers(made.url, done.key)["base_rate"]
    assert base_rate == pytest.approx(PATTERN**2 / SIZE**2)


def test_seconds_are_those_of_the_units_each_counted_once(made: MadeRoot) -> None:
    plain = made.method("plain", True, elements=4)
    seconds = [
        finished(made.opened, patches.STAGE, key).seconds for key in made.patches("plain", True)
    ]
    (maps, _) = (finished(made.opened, clip_ranking.STAGE, key).seconds for key in plain.maps[1])  # type: ignore[index]
    key = (clip_ranking.STAGE, plain.maps[1][0])  # type: ignore[index]
    counted = replace(
        plain.parts[-1],
        units=(*plain.parts[-1].units, key, key),
        selection=plain.parts[0].selection,
    )
    method = replace(plain, parts=(counted,), training=(key,), clustering=(key,))
    done = comparison.fn(made.url, made.compared(method))
    (numbers,) = compared_numbers(made.url, done.key)["methods"]
    assert numbers["growth"][0]["seconds"] == pytest.approx(sum(seconds) + maps)
    assert numbers["training_seconds"] == numbers["clustering_seconds"] == pytest.approx(maps)


def test_the_unit_depends_on_what_was_found(made: MadeRoot) -> None:
    one, other = made.method("a", True, elements=3), made.method("a", True, elements=2)
    assert made.compared(one).unit.key != made.compared(other).unit.key
    assert made.compared(one).unit.key != made.compared(one, other).unit.key
    unknown = replace(made.compared(one), truth=None)
    assert unknown.unit.key != made.compared(one).unit.key
    done = comparison.fn(made.url, unknown)
    (numbers,) = compared_numbers(made.url, done.key)["methods"]
    assert numbers["hits"] is numbers["average_precision"] is numbers["purity"] is None
    stored = finished(made.opened, "comparison", done.key)
    assert "root.html" in stored.files
    assert json.dumps(numbers)
