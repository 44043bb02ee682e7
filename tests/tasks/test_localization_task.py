"""The task `localization` at a root with real shards and maps made to tell the boxes, or not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from written_images import photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.recipes import MINED
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import complete
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from tasks.evaluation import BOXES, TruthReference
from tasks.index import dataset_counts, dataset_shards, good_images, index
from tasks.localization import (
    Located,
    localization,
    localization_numbers,
    located_images,
    shards_to_measure,
)
from tasks.models import ModelReference, base_model
from tasks.report import publish_page
from tasks.typicality import typicality_unit
from tasks.units import Done

SIZE, CELL = 32, 8
OPTIONS = {"size": SIZE, "made": "by hand"}
BASE = base_model("tiny")
FINETUNED = replace(BASE, digest="of another model", finetuned="key")

WIDTH, HEIGHT = 96, 64  # halved by the model's size
BOX = [32.0, 16.0, 48.0, 32.0]  # at the model's size 2 × 3 cells from (1, 2)
TINY = [10.2, 10.2, 0.5, 0.5]
ROWS: Mapping[str, tuple[str, list[list[float]]]] = {
    "a.png": ("crack", [BOX]),
    "b.png": ("crack", [BOX]),
    "c.png": ("crack", []),
    "d.png": ("fray", [BOX]),
    "e.png": ("free", []),
    "f.png": ("free", []),
}


class MadeRoot:
    """A dataset with a manifest of boxes, indexed in shards of three images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder / "root")
        self.opened = open_root(self.url)
        self.rows = {name: (label, list(boxes)) for name, (label, boxes) in ROWS.items()}
        for seed, name in enumerate(ROWS):
            put(str(folder), name, photo(seed, WIDTH, HEIGHT))

    @property
    def truth(self) -> TruthReference:
        return TruthReference(BOXES, str(self.folder / "tiles.csv"), "")

    def indexed(self, **changes: list[list[float]]) -> list[Shard]:
        """The shards, after the boxes of some images have been changed."""
        for stem, boxes in changes.items():
            self.rows[f"{stem}.png"] = (self.rows[f"{stem}.png"][0], boxes)
        lines = [f"{n}|{label}|{json.dumps(boxes)}" for n, (label, boxes) in self.rows.items()]
        table = "\n".join(["uri|label|boxes", *lines]).replace("|", "\t")
        put(str(self.folder), "tiles.tsv", table.encode())
        dataset = str(self.folder / "tiles.tsv")
        *_, state = index.fn(self.url, dataset, None, MINED, 3, 0.0)
        return dataset_shards(self.url, state.key)

    def measure(self, shard: Shard, model: ModelReference, told: bool, absent: str = "") -> str:
        """Publish maps of a shard that are high in BOX (told) or everywhere but there."""
        good = good_images(self.opened, shard)
        images = [one for one in good if one.uri.rpartition("/")[2] != absent]
        inside = np.full((SIZE // CELL, 48 // CELL), -1e-3, np.float32)
        inside[1:3, 2:5] = 1e-3
        maps = [inside if told else -inside for _ in images]
        ids, labels = zip(*((image.image_id, image.label) for image in images), strict=True)
        packed = RaggedMaps.pack(maps, maps, [1.0] * len(maps), ids, labels, 2)
        unit = typicality_unit(shard.content_id, model, OPTIONS)
        complete(self.opened, unit, lambda attempt: write_maps(attempt, packed))
        return unit.key

    def localized(self, located: Located, told: Mapping[str, Sequence[str]]) -> Done:
        done: Done = localization.fn(
            self.url, "Tiles", self.truth, located, told, SIZE, {"notes": ["Seen <before>."]}
        )
        return done


@pytest.fixture
def made(tmp_path: Path) -> MadeRoot:
    return MadeRoot(tmp_path)


def names(images: Sequence[ShardImage]) -> list[str]:
    return sorted(image.uri.rpartition("/")[2] for image in images)


def test_only_images_with_a_box_are_measured(made: MadeRoot) -> None:
    dataset = made.indexed()
    located = located_images(made.url, dataset, made.truth)
    assert located.pairs == 3
    assert len(dataset) == 2
    parts = [good_images(made.opened, part) for part in located.parts]
    assert sorted(name for part in parts for name in names(part)) == ["a.png", "b.png", "d.png"]
    assert all(image.boxes for part in parts for image in part)
    assert sum(part.images for part in located.parts) == 3
    assert dataset_counts(located.parts) == {"crack": 2, "fray": 1}


def test_a_shard_without_any_box_is_left_out(made: MadeRoot) -> None:
    dataset = made.indexed(b=[], d=[])
    assert len(dataset) == 2
    located = located_images(made.url, dataset, made.truth)
    assert [names(good_images(made.opened, part)) for part in located.parts] == [["a.png"]]


def boxed_in_each_shard(made: MadeRoot, count: int) -> list[list[str]]:
    """Give the first `count` images of each shard a box; the stems of each shard's images."""
    shards = [names(good_images(made.opened, shard)) for shard in made.indexed()]
    stems = [[name.removesuffix(".png") for name in of_shard] for of_shard in shards]
    for of_shard in stems:
        made.indexed(**{stem: [BOX] if i < count else [] for i, stem in enumerate(of_shard)})
    return stems


def test_a_shard_of_boxed_images_alone_is_measured_as_mining_does(made: MadeRoot) -> None:
    boxed_in_each_shard(made, 3)
    dataset = made.indexed()
    located = located_images(made.url, dataset, made.truth)
    assert located.parts == located.shards == tuple(dataset)


def test_maps_that_mining_left_are_used_and_only_they(made: MadeRoot) -> None:
    boxed_in_each_shard(made, 1)
    located = located_images(made.url, made.indexed(), made.truth)
    made.measure(located.shards[0], FINETUNED, told=True)
    chosen = shards_to_measure(made.url, located, FINETUNED, OPTIONS)
    assert chosen == [located.shards[0], located.parts[1]]
    assert shards_to_measure(made.url, located, BASE, OPTIONS) == list(located.parts)


def test_maps_of_a_shard_that_lost_an_image_are_used(made: MadeRoot) -> None:
    stems = boxed_in_each_shard(made, 1)
    made.rows.pop(f"{stems[0][2]}.png")
    shrunk = located_images(made.url, made.indexed(), made.truth)
    (lost,) = (shard for shard in shrunk.shards if shard.dropped)
    assert shards_to_measure(made.url, shrunk, BASE, OPTIONS) == list(shrunk.parts)
    made.measure(lost, BASE, told=True)
    assert lost in shards_to_measure(made.url, shrunk, BASE, OPTIONS)


def test_maps_that_tell_the_boxes_score_one_and_the_others_little(made: MadeRoot) -> None:
    located = located_images(made.url, made.indexed(), made.truth)
    before = [made.measure(part, BASE, told=False) for part in located.parts]
    after = [made.measure(shard, FINETUNED, told=True) for shard in located.shards]
    done = made.localized(located, {"before": before, "after": after})
    assert done.computed
    assert done.counts == {"images": 3, "left_out": 0}
    numbers = localization_numbers(made.url, done.key)
    assert [finding["label"] for finding in numbers["findings"]] == ["crack", "fray"]
    assert [finding["images"] for finding in numbers["findings"]] == [2, 1]
    # The boxes are cells from edge to edge, 6 of 24; what is measured there is spread to pixels.
    for finding in [*numbers["findings"], numbers["all"]]:
        assert finding["chance"] == {"mean": 0.25, "std": 0}
        assert finding["average_precision"]["after"]["mean"] > 0.99
        assert finding["average_precision"]["before"]["mean"] < 0.2
        assert finding["official_auc_pr"]["after"]["mean"] > 0.5
        assert finding["official_auc_pr"]["before"]["mean"] < 0.1
    page = Path(publish_page(made.url, done.key, done.stage, "localization.html"))
    html = page.read_text()
    assert "Seen &lt;before&gt;." in html
    assert 'src="localization/' in html
    assert not made.localized(located, {"before": before, "after": after}).computed


def test_what_covers_no_pixel_or_was_not_measured_is_left_out_and_said(made: MadeRoot) -> None:
    located = located_images(made.url, made.indexed(b=[TINY]), made.truth)
    keys = [made.measure(part, BASE, told=True, absent="d.png") for part in located.parts]
    done = made.localized(located, {"as given": keys})
    assert done.counts == {"images": 1, "left_out": 2}
    notes = localization_numbers(made.url, done.key)["facts"]["notes"]
    assert notes[0] == "Seen <before>."
    assert sorted(notes[1:]) == [
        "Images that are not scored, as they were set aside when they were to be measured: 1.",
        "Images that are not scored, as what is known of where their label is covers no pixel at "
        "this size: 1.",
    ]


def test_nothing_left_to_score_is_refused(made: MadeRoot) -> None:
    located = located_images(made.url, made.indexed(a=[TINY], b=[TINY], d=[TINY]), made.truth)
    keys = [made.measure(part, BASE, told=True) for part in located.parts]
    with pytest.raises(InputError, match="3 images should be scored, but none is, as what"):
        made.localized(located, {"as given": keys})


def test_a_corrected_box_is_scored_anew_without_measuring(made: MadeRoot) -> None:
    located = located_images(made.url, made.indexed(), made.truth)
    keys = [made.measure(part, BASE, told=True) for part in located.parts]
    first = made.localized(located, {"as given": keys})
    corrected = located_images(made.url, made.indexed(a=[[0.0, 0.0, 16.0, 16.0]]), made.truth)
    assert [part.content_id for part in corrected.parts] == [
        part.content_id for part in located.parts
    ]
    second = made.localized(corrected, {"as given": keys})
    assert second.computed
    assert second.key != first.key
    crack = localization_numbers(made.url, second.key)["findings"][0]
    assert crack["average_precision"]["as given"]["mean"] < 0.8


def test_a_dataset_that_says_nothing_of_places_is_refused(made: MadeRoot) -> None:
    dataset = made.indexed(a=[], b=[], d=[])
    with pytest.raises(InputError, match=r"the boxes of .*tiles.* do so for none.*--masks"):
        located_images(made.url, dataset, made.truth)
