"""The tasks of the parallel dataset at a root with scenes drawn anew under every label.

A scene of a country, drawn from the same seed as another country's, has the same layout and other
elements: a perfect translation, of which it is known what lies where.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from written_images import parquet_of, put

from diffmining_core.clusters.joint import JOINT_SCHEMA
from diffmining_core.clusters.trend import TREND_SCHEMA, patch_colour
from diffmining_core.errors import InputError
from diffmining_core.evaluation.planted import Box as PlantedBox
from diffmining_core.evaluation.planted import planted_mask
from diffmining_core.images.addresses import row_uri
from diffmining_core.images.pixels import content_id, load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.shards import SHARD_SCHEMA, shard_content_id
from diffmining_core.images.street_scenes import scene
from diffmining_core.images.street_scenes.dataset import TRUTH_SCHEMA, scene_generator
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.patches.sequences import SEQUENCE_SCHEMA
from diffmining_core.recipes import MINED
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, complete, finished, read_table
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import parallel
from tasks.evaluation import MASKS, PLANTED, TruthReference, read_truth
from tasks.features import feature_matrix
from tasks.index import dataset_shards, good_images, index, part_of
from tasks.models import Device, base_model, loaded
from tasks.parallel import Pair
from tasks.report import publish_page
from tasks.typicality import typicality_unit
from tasks.units import Done

LABELS = ("Almara", "Borvik", "Cendria")
PER_LABEL = 4
SIDE, CELL, PATCH = 64, 8, 16
PATCHES = {"size": PATCH, "per_image": 2, "cell": CELL}
TOP = 18
MODEL = base_model("tiny")
CPU = Device("cpu", "float32")
FEATURES = {**PromptTemplate("An image of {label}.", "").as_options(), "size": SIDE, "seed": 3}
KINDS = ("roof", "plate")
"""The elements that the maps made here find typical under every label."""


def drawn(own: str, number: int, label: str) -> scene.Scene:
    """Scene `number` of a country as it looks under a label."""
    return scene.draw_scene(scene_generator(5, own, number), label, SIDE)


def png(drawn: scene.Scene) -> bytes:
    buffer = io.BytesIO()
    drawn.image.save(buffer, "png")
    return buffer.getvalue()


class MadeRoot:
    """Scenes of three countries in two shards, translated to each other, and maps of all."""

    def __init__(self, folder: Path) -> None:
        self.url = str(folder / "root")
        self.opened = open_root(self.url)
        self.dataset = str(folder / "scenes")
        self.scenes = {
            f"{label}/{label}_{number:05d}.png": (label, number)
            for label in LABELS
            for number in range(PER_LABEL)
        }
        truth = []
        for file, (label, number) in self.scenes.items():
            one = drawn(label, number, label)
            put(self.dataset, file, png(one))
            truth += [{"file": file, "label": label, **vars(box)} for box in one.boxes]
        table = pa.Table.from_pylist(truth, schema=TRUTH_SCHEMA)
        put(self.dataset, "truth.parquet", parquet_of(table))
        *_, state = index.fn(self.url, self.dataset, None, MINED, 6, 0.0)
        self.shards = dataset_shards(self.url, state.key)
        self.pairs = [self.pair(shard) for shard in self.shards]

    @property
    def truth(self) -> TruthReference:
        return read_truth(PLANTED, f"{self.dataset}/truth.parquet")

    def scene_of(self, image: ShardImage) -> tuple[str, int]:
        return self.scenes["/".join(image.uri.split("/")[-2:])]

    def pair(self, source: Shard, targets: Sequence[str] = LABELS, unmeasured: int = 0) -> Pair:
        """A shard with the translations of its images; of so many of those there is no map."""
        images = good_images(self.opened, source)
        translated = self.translate(images, targets, source.content_id)
        own_maps = [(image.image_id, image.label, self.map_of(image)) for image in images]
        by_id = {image.image_id: image for image in images}
        theirs = [
            (row["image_id"], row["label"], sign * self.map_of(by_id[row["source_id"]]))
            for row in self.table(translated).to_pylist()
            for sign in (-1 if row["label"] == "Cendria" else 1,)
        ]
        return Pair(
            source,
            translated,
            self.measure(source, own_maps),
            self.measure(translated, theirs[unmeasured:]),
        )

    def translate(self, images: Sequence[ShardImage], targets: Sequence[str], of: str) -> Shard:
        """Publish the translations as `tasks.parallel` expects them."""

        def produce(attempt: Attempt) -> None:
            file = self.opened.url_of(f"{attempt.folder}/images.parquet")
            rows: list[dict[str, Any]] = []
            contents = []
            for image in images:
                own, number = self.scene_of(image)
                for label in targets:
                    if label == own:
                        continue
                    data = png(drawn(own, number, label))
                    known = {"image_id": content_id(data), "source_id": image.image_id}
                    size = {"width": SIDE, "height": SIDE}
                    uri = row_uri(file, len(rows), "image", f"{own}_{number}.png")
                    rows.append({**known, **size, "uri": uri, "label": label})
                    contents.append(data)
            attempt.write_table("images.parquet", pa.table({"image": contents}))
            schema = SHARD_SCHEMA.append(pa.field("source_id", pa.string()))
            plain = {"fingerprint": "", "declared": False}
            table = pa.Table.from_pylist([{**row, **plain} for row in rows], schema=schema)
            attempt.write_table("shard.parquet", table)

        unit = Unit("translation", "by hand", (of,), {"targets": list(targets)})
        complete(self.opened, unit, produce)
        table = read_table(
            self.opened, finished(self.opened, unit.stage, unit.key), "shard.parquet"
        )
        content = shard_content_id(table)
        count = table.num_rows
        labels = tuple((label, count) for label in targets)
        return Shard(unit.key, content, content, (), count, labels, 0, 0, stage=unit.stage)

    def table(self, translated: Shard) -> pa.Table:
        manifest = finished(self.opened, translated.stage, translated.key)
        return read_table(self.opened, manifest, "shard.parquet")

    def map_of(self, source: ShardImage) -> np.ndarray[Any, np.dtype[np.float32]]:
        """High where the source image has one of KINDS, the roof above all."""
        boxes = drawn(*self.scene_of(source), source.label).boxes
        mean = np.full((SIDE // CELL, SIDE // CELL), -1e-3, np.float32)
        for kind, worth in zip(KINDS, (3e-3, 2e-3), strict=True):
            own = [
                PlantedBox(box.element, "", box.y0, box.x0, box.y1, box.x1)
                for box in boxes
                if box.element == kind
            ]
            mask = planted_mask(own, "", (SIDE, SIDE))
            mean += worth * mask.reshape(8, CELL, 8, CELL).mean((1, 3)).astype(np.float32)
        return mean

    def measure(self, shard: Shard, maps: Sequence[tuple[str, str, Any]]) -> str:
        ids, labels, means = zip(*maps, strict=True)
        packed = RaggedMaps.pack(means, means, [1.0] * len(means), ids, labels, 2)
        unit = typicality_unit(shard.content_id, MODEL, {"maps": len(means)})
        complete(self.opened, unit, lambda attempt: write_maps(attempt, packed))
        return unit.key

    def sequences(self, *pairs: Pair) -> Done:
        keys = [parallel.cotypicality.fn(self.url, pair, LABELS, PATCHES).key for pair in pairs]
        done: Done = parallel.sequences.fn(self.url, keys, TOP)
        return done

    def features(self, label: str, key: str, pairs: Sequence[Pair]) -> Done:
        done: Done = parallel.joint_features.fn(self.url, label, key, pairs, MODEL, FEATURES, CPU)
        return done

    def read(self, done: Done, name: str = parallel.TABLE) -> pa.Table:
        return read_table(self.opened, finished(self.opened, done.stage, done.key), name)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MadeRoot:
    return MadeRoot(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def chosen(made: MadeRoot) -> Done:
    return made.sequences(*made.pairs)


@pytest.fixture(scope="module")
def embedded(made: MadeRoot, chosen: Done) -> dict[str, Done]:
    return {label: made.features(label, chosen.key, made.pairs) for label in LABELS}


@pytest.fixture(scope="module")
def clustered(made: MadeRoot, chosen: Done, embedded: dict[str, Done]) -> Done:
    keys = {label: done.key for label, done in embedded.items()}
    done: Done = parallel.joint_clusters.fn(made.url, chosen.key, keys, 32)
    return done


@pytest.fixture(scope="module")
def reported(made: MadeRoot, clustered: Done) -> Done:
    done: Done = parallel.parallel_report.fn(
        made.url,
        "Streets",
        LABELS,
        made.pairs,
        clustered.key,
        made.truth,
        SIDE,
        {"notes": ["Seen <once>."]},
    )
    return done


def test_every_image_is_itself_under_its_own_label(made: MadeRoot) -> None:
    images = [image for pair in made.pairs for image in parallel.parallel_images(made.opened, pair)]
    assert len(images) == len(LABELS) * PER_LABEL
    for image in images:
        assert set(image.under) == set(LABELS)
        (own,) = image.own
        label, number = made.scene_of(image.under[own])
        assert own == label
        for other in LABELS:
            expected = np.asarray(drawn(own, number, other).image)
            one = image.under[other]
            np.testing.assert_array_equal(load_pixels(one.uri, SIDE, one.image_id), expected)


def test_sequences_are_the_highest_of_all_shards(made: MadeRoot, chosen: Done) -> None:
    table = made.read(chosen)
    assert table.schema == SEQUENCE_SCHEMA
    assert table.num_rows == TOP < len(LABELS) * PER_LABEL * PATCHES["per_image"]
    scores = table["cotypicality"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    keys = [parallel.cotypicality_unit(pair, LABELS, PATCHES).key for pair in made.pairs]
    parts = [
        read_table(made.opened, finished(made.opened, parallel.COTYPICALITY, key), parallel.TABLE)
        for key in keys
    ]
    every = sorted(
        (value for part in parts for value in part["cotypicality"].to_pylist()), reverse=True
    )
    assert scores == every[:TOP]
    backwards = parallel.sequences.fn(made.url, keys[::-1], TOP)
    assert made.read(backwards).equals(table)


def test_what_is_there_is_not_made_again(made: MadeRoot, chosen: Done) -> None:
    again = made.sequences(*made.pairs)
    assert (again.key, again.computed) == (chosen.key, False)


def test_an_image_without_a_map_under_every_label_is_left_out(made: MadeRoot) -> None:
    pair = made.pair(made.shards[0], unmeasured=3)  # of two images
    done = parallel.cotypicality.fn(made.url, pair, LABELS, PATCHES)
    assert done.counts == {"images": 4, "left_out": 2, "sequences": 8}
    untranslated = made.pair(made.shards[0], targets=LABELS[:2])
    images = good_images(made.opened, made.shards[0])
    of_third = sum(image.label == LABELS[2] for image in images)
    done = parallel.cotypicality.fn(made.url, untranslated, LABELS, PATCHES)
    assert done.counts["left_out"] == len(images) - of_third


def test_an_image_that_has_left_the_dataset_has_no_sequence(made: MadeRoot) -> None:
    pair = made.pairs[0]
    first, *others = good_images(made.opened, pair.source)
    part = replace(pair, source=part_of(made.opened, pair.source, others))
    done = parallel.cotypicality.fn(made.url, part, LABELS, PATCHES)
    assert done.counts["images"] == len(others)
    assert first.image_id not in made.read(done)["image_id"].to_pylist()


def test_no_sequence_at_all_is_refused(made: MadeRoot) -> None:
    key = parallel.cotypicality.fn(
        made.url, made.pairs[0], LABELS, {**PATCHES, "size": SIDE + 1}
    ).key
    with pytest.raises(InputError, match=r"none of 6 has, and 0 lack a map.*--patch-size"):
        parallel.sequences.fn(made.url, [key], TOP)


def test_a_label_s_features_are_those_of_its_own_image_with_its_own_prompt(
    made: MadeRoot, chosen: Done, embedded: dict[str, Done]
) -> None:
    from diffmining_core.features.dift import image_features

    pipeline = loaded(made.url, MODEL, CPU)
    rows = made.read(chosen).to_pylist()
    images = [image for pair in made.pairs for image in parallel.parallel_images(made.opened, pair)]
    under = {image.origin: image.under for image in images}
    for label in LABELS:
        table = made.read(embedded[label])
        features, colours = feature_matrix(table), feature_matrix(table, "colour")
        assert features.shape[0] == len(rows)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
        prompt = pipeline.embed_prompts([f"An image of {label}."])[0]
        for place in (0, len(rows) - 1):
            row = rows[place]
            one = under[row["image_id"], row["label"]][label]
            pixels = load_pixels(one.uri, SIDE)
            at = [(row["y"], row["x"])]
            expected = image_features(pipeline, pixels, prompt, at, PATCH, 3, one.image_id)
            np.testing.assert_allclose(features[place], expected[0], rtol=1e-4, atol=1e-6)
            patch = pixels[row["y"] :, row["x"] :][:PATCH, :PATCH]
            np.testing.assert_allclose(colours[place], patch_colour(patch), rtol=1e-5)


def test_each_image_is_embedded_once_whatever_the_order_of_shards(
    made: MadeRoot, chosen: Done, embedded: dict[str, Done]
) -> None:
    done = embedded[LABELS[0]]
    images = len(set(made.read(chosen)["image_id"].to_pylist()))
    assert done.counts["images"] == images < TOP
    assert done.counts["unet_forwards"] == 8 * images
    options = {**FEATURES, "said": "so that it is another unit"}
    again = parallel.joint_features.fn(
        made.url, LABELS[0], chosen.key, made.pairs[::-1], MODEL, options, CPU
    )
    assert again.computed
    assert made.read(again).equals(made.read(done))


def test_images_that_are_in_none_of_the_shards_are_named(made: MadeRoot, chosen: Done) -> None:
    table = made.read(chosen)
    origins = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    with pytest.raises(LookupError, match="should be in the shards they are from"):
        parallel.seen_under(made.opened, made.pairs[:1], origins)


def test_clusters_are_ranked_and_have_a_colour_under_each_label(
    made: MadeRoot, chosen: Done, clustered: Done, embedded: dict[str, Done]
) -> None:
    clusters, trend = made.read(clustered), made.read(clustered, parallel.TREND)
    assert clusters.schema == JOINT_SCHEMA
    assert trend.schema == TREND_SCHEMA
    assert clusters.num_rows == TOP
    ranks = clusters["cluster"].to_numpy()
    assert set(ranks) == set(range(3))  # six sequences each on average, of 32 asked for
    scores = clusters["cotypicality"].to_numpy()
    medians = [np.median(scores[ranks == rank]) for rank in range(3)]
    assert medians == sorted(medians, reverse=True)
    # Colours are those of each cluster's own members, though the table is in another order.
    place_of = {
        (row["image_id"], row["y"], row["x"]): place
        for place, row in enumerate(made.read(chosen).to_pylist())
    }
    colours = feature_matrix(made.read(embedded["Borvik"]), "colour")
    for rank in range(3):
        rows = [row for row in clusters.to_pylist() if row["cluster"] == rank]
        own = [place_of[row["image_id"], row["y"], row["x"]] for row in rows]
        (found,) = (
            row for row in trend.to_pylist() if (row["cluster"], row["label"]) == (rank, "Borvik")
        )
        lab = [found["lightness"], found["a"], found["b"]]
        np.testing.assert_allclose(lab, colours[own].mean(axis=0), rtol=1e-4, atol=1e-4)


def test_the_page_tells_what_is_known(made: MadeRoot, reported: Done) -> None:
    numbers = parallel.parallel_numbers(made.url, reported.key)
    assert numbers["labels"] == list(LABELS)
    assert sum(one["members"] for one in numbers["clusters"]) == TOP
    truth = numbers["truth"]
    assert set(truth["kinds"]) <= {*KINDS, "window"}
    assert truth["kinds"]["roof"] > 0.3
    assert 0 <= truth["one_kind"] <= 1
    page = Path(publish_page(made.url, reported.key, reported.stage, "parallel.html"))
    html = page.read_text()
    assert 'href="parallel_report/' in html
    assert "Seen &lt;once&gt;." in html
    linked = html.split('<image href="')[1].split('"')[0]
    assert (page.parent / linked).is_file()
    assert html.count('class="own"') == sum(min(6, one["members"]) for one in numbers["clusters"])


def test_roofs_correspond_to_roofs_under_every_label(made: MadeRoot, chosen: Done) -> None:
    """What these tests rest on: drawn anew, a scene has the same kinds at the same places."""
    for row in made.read(chosen).to_pylist():
        own, number = next(
            made.scene_of(image)
            for pair in made.pairs
            for image in good_images(made.opened, pair.source)
            if image.image_id == row["image_id"]
        )
        places = {
            label: [
                (box.element, box.y0, box.x0, box.y1, box.x1)
                for box in drawn(own, number, label).boxes
            ]
            for label in LABELS
        }
        assert places["Almara"] == places["Borvik"] == places["Cendria"]


def test_a_page_is_made_anew_only_for_other_words_or_another_truth(
    made: MadeRoot, clustered: Done, reported: Done
) -> None:
    def unit(truth: TruthReference | None = made.truth, **facts: Any) -> str:
        return parallel.parallel_report_unit(LABELS, clustered.key, truth, SIDE, facts).key

    assert unit(notes=["Seen <once>."]) == reported.key
    assert len({unit(), unit(other=1), unit(None), unit(replace(made.truth, digest="x"))}) == 4


def test_a_truth_that_is_not_planted_or_of_other_images_is_refused(
    made: MadeRoot, clustered: Done, tmp_path: Path
) -> None:
    def report(truth: TruthReference) -> None:
        parallel.parallel_report.fn(
            made.url, "Streets", LABELS, made.pairs, clustered.key, truth, SIDE, {}
        )

    with pytest.raises(InputError, match="has masks; leave it out"):
        report(TruthReference(MASKS, "/masks", "of masks"))
    table = pq.read_table(f"{made.dataset}/truth.parquet")
    other = table.set_column(0, "file", pa.array(["x/y.png"] * table.num_rows))
    put(str(tmp_path), "truth.parquet", parquet_of(other))
    with pytest.raises(InputError, match="has no box for any of them"):
        report(read_truth(PLANTED, str(tmp_path / "truth.parquet")))


def test_the_notes_say_what_was_done_otherwise(made: MadeRoot, clustered: Done) -> None:
    some = parallel.cotypicality.fn(
        made.url, made.pair(made.shards[0], unmeasured=3), LABELS, PATCHES
    )
    assert parallel.parallel_notes(made.url, [some.key], clustered.key, 32) == [
        "Images left out, as they have no map under one of the labels: 2.",
        f"3 joint clusters in place of 32, because there are only {TOP} sequences.",
        "Features were reduced to their principal components and not by UMAP, which needs more "
        f"than {TOP} sequences.",
    ]


def test_what_is_typical_under_one_label_less_counts_no_less(made: MadeRoot) -> None:
    """Of three labels, the maps of one tell the opposite: the median is that of the others."""
    done = parallel.cotypicality.fn(made.url, made.pairs[0], LABELS, PATCHES)
    for row in made.read(done).to_pylist():
        under = dict(zip(row["labels"], row["typicality"], strict=True))
        assert row["own"] == [row["label"]]
        assert under["Almara"] == under["Borvik"] == pytest.approx(row["cotypicality"], rel=1e-5)
        opposite = 1 if row["label"] == "Cendria" else -1
        assert under["Cendria"] == pytest.approx(opposite * under["Almara"], rel=1e-5)


def shard_of(root: str, stage: str, rows: Sequence[tuple[str, str, str | None]]) -> Shard:
    """A shard with a row for each image id, label and, of a translation, id of its source."""
    plain = {"width": SIDE, "height": SIDE, "fingerprint": "", "declared": False}
    table = pa.Table.from_pylist(
        [
            {"image_id": id_, "uri": f"/{place}", "label": label, "source_id": source_id, **plain}
            for place, (id_, label, source_id) in enumerate(rows)
        ],
        schema=SHARD_SCHEMA.append(pa.field("source_id", pa.string())),
    )
    unit = Unit(stage, "by hand", (), {"rows": [list(row) for row in rows]})
    complete(open_root(root), unit, lambda attempt: attempt.write_table("shard.parquet", table))
    return Shard(unit.key, unit.key, unit.key, (), len(rows), (), 0, 0, stage=stage)


def test_an_image_of_several_labels_is_itself_under_each_of_them(tmp_path: Path) -> None:
    root = str(tmp_path)
    two, twice = ("one", "roof", None), ("other", "lamp", None)
    source = shard_of(root, "index", [two, ("one", "lamp", None), twice, twice])
    translations = [("t1", "plate", "one"), ("t2", "roof", "other"), ("t3", "plate", "gone")]
    translated = shard_of(root, "translation", translations)
    images = parallel.parallel_images(open_root(root), Pair(source, translated, "", ""))
    found = [
        (image.origin, image.own, {label: one.uri for label, one in image.under.items()})
        for image in images
    ]
    assert found == [
        (("one", "roof"), ["roof", "lamp"], {"roof": "/0", "lamp": "/1", "plate": "/0"}),
        (("other", "lamp"), ["lamp"], {"lamp": "/2", "roof": "/1"}),
    ]


def test_a_pair_travels_as_json(made: MadeRoot) -> None:
    for pair in made.pairs:
        assert Pair.from_json(json.loads(json.dumps(asdict(pair)))) == pair


def test_units_have_names_of_their_own(made: MadeRoot) -> None:
    pair = made.pairs[0]
    keys = {
        parallel.cotypicality_unit(one, labels, options).key
        for one, labels, options in (
            (pair, LABELS, PATCHES),
            (made.pairs[1], LABELS, PATCHES),
            (pair, LABELS[:2], PATCHES),
            (pair, LABELS, {**PATCHES, "size": 8}),
            (replace(pair, translated_maps="others"), LABELS, PATCHES),
            (replace(pair, source_maps="others"), LABELS, PATCHES),
        )
    }
    assert len(keys) == 6
