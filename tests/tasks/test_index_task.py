"""Indexing: recipes and splits, several labels, corrected notes, another process meanwhile."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from guarded_images import Guarded, guarded_images
from PIL import Image
from published_layouts import PUBLISHED, folder_of
from written_images import photo, put

from diffmining_core.images import shards
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.reach import ALLOW
from diffmining_core.recipes import MINED, TRAIN, load_recipe
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished
from diffmining_core.store.roots import open_root
from tasks import index as indexing
from tasks.index import dataset_shards
from tasks.index import good_images as good
from tasks.units import Done


def test_shards_that_another_process_publishes_meanwhile_make_no_second_state_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, root = str(tmp_path / "photos"), str(tmp_path / "root")
    for number in range(4):
        put(dataset, f"red/{number}.png", photo(number))
    first = indexing.index.fn(root, dataset, None, MINED, 2, 0.1)
    # The listing was just before the other process published, the reading of the shards after it.
    monkeypatch.setattr(indexing, "published", lambda *_: set())
    second = indexing.index.fn(root, dataset, None, MINED, 2, 0.1)
    assert second[-1].key == first[-1].key
    assert len(list((tmp_path / "root/manifests/dataset").iterdir())) == 1


def held(root: str, done: list[Done]) -> list[Shard]:
    return dataset_shards(root, done[-1].key, done[-1].stage)


def test_an_image_of_several_labels_counts_once_and_its_pairs_each(tmp_path: Path) -> None:
    dataset, root = folder_of("xray", tmp_path), str(tmp_path / "root")
    done = indexing.index.fn(root, dataset, "xray", MINED, 1000, 0.1)
    (shard,) = held(root, done)
    assert (shard.images, shard.pairs, shard.set_aside) == (3, 6, 0)
    assert dict(shard.labels) == dict.fromkeys(
        ("Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pleural_Thickening"), 1
    )
    assert done[-1].counts["images"] == 3
    facts = finished(open_root(root), done[-1].stage, done[-1].key).facts
    assert facts["left_out"]["without a box"]["count"] == 2


def test_a_corrected_box_or_detail_opens_no_image_and_leaves_the_content_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, root = folder_of("xray", tmp_path), str(tmp_path / "root")
    first = indexing.index.fn(root, dataset, "xray", MINED, 1000, 0.1)
    boxes = tmp_path / "xray" / "BBox_List_2017.csv"
    boxes.write_text(boxes.read_text().replace("4.5,5.0,6.25,7.0", "4.5,5.0,60.25,7.0"))
    monkeypatch.setattr(shards, "read_bytes", lambda uri: pytest.fail(f"{uri} is opened"))
    second = indexing.index.fn(root, dataset, "xray", MINED, 1000, 0.1)
    assert [unit.stage for unit in second if unit.computed] == ["index", "dataset"]
    (before,), (after,) = held(root, first), held(root, second)
    assert (after.content_id, after.indexed_id) == (before.content_id, before.indexed_id)
    assert (after.images, after.pairs, after.labels) == (3, 6, before.labels)

    def widest(shard: Shard) -> float:
        images = good(open_root(root), shard)
        return max(box[2] for image in images for box in image.boxes)

    assert (widest(before), widest(after)) == (7.0, 60.25)
    again = indexing.index.fn(root, dataset, "xray", MINED, 1000, 0.1)
    assert [unit.computed for unit in again] == [False]


def test_a_detail_is_no_part_of_the_content_and_has_its_own_id(tmp_path: Path) -> None:
    dataset, root = folder_of("g3", tmp_path), str(tmp_path / "root")
    (before,) = held(root, indexing.index.fn(root, dataset, "g3", TRAIN, 1000, 0.1))
    metadata = tmp_path / "g3" / "metadata.csv"
    metadata.write_text(metadata.read_text().replace("Lazio", "Latium"))
    (after,) = held(root, indexing.index.fn(root, dataset, "g3", TRAIN, 1000, 0.1))
    assert after.content_id == before.content_id
    assert after.details_id != before.details_id
    details = {image.detail for image in good(open_root(root), after)}
    assert details == {"Latium, south", None}


def test_splits_have_shards_of_their_own_and_neither_changes_the_other(tmp_path: Path) -> None:
    dataset, root = folder_of("g3", tmp_path), str(tmp_path / "root")
    for _ in range(2):
        mined = indexing.index.fn(root, dataset, "g3", MINED, 5, 0.1)
        train = indexing.index.fn(root, dataset, "g3", TRAIN, 5, 0.1)
    assert not any(unit.computed for unit in [*mined, *train])
    assert sum(shard.images for shard in held(root, mined)) == 15
    assert sum(shard.images for shard in held(root, train)) == 23
    assert {shard.stage for shard in held(root, train)} == {"index_train"}
    labels = {image.label for s in held(root, train) for image in good(open_root(root), s)}
    assert labels == {"Italy", "Japan", "Chile"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_recipe_indexes_its_published_layout(name: str, tmp_path: Path) -> None:
    dataset, root = folder_of(name, tmp_path), str(tmp_path / "root")
    recipe = load_recipe(name)
    for split in (MINED, TRAIN):
        found = held(root, indexing.index.fn(root, dataset, name, split, 1000, 0.5))
        assert sum(shard.images for shard in found) >= 3
        assert {shard.stage for shard in found} == {indexing.index_stage(recipe, split)}


def grey(bits: int) -> bytes:
    """A PNG of 16 bits whose values fill fewer."""
    values = np.linspace(0, 2**bits - 1, 48 * 40).reshape(40, 48).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "png")
    return buffer.getvalue()


def test_scaled_greys_and_all_files_are_told_of_the_dataset_as_it_is(tmp_path: Path) -> None:
    dataset, root = str(tmp_path / "rays"), str(tmp_path / "root")
    for number in range(3):
        put(dataset, f"chest/{number}.png", grey(12))
    put(dataset, "chest/9.png", grey(16))
    put(dataset, "chest/bad.png", b"no image")
    put(dataset, "chest/notes.txt", b"")

    def indexed() -> tuple[dict[str, int], dict[str, int]]:
        done = indexing.index.fn(root, dataset, None, MINED, 2, 0.5)[-1]
        facts = finished(open_root(root), done.stage, done.key).facts["scaled"]
        counts = {name: done.counts[name] for name in ("listed", "images", "set_aside", "left_out")}
        return counts, {reason: found["count"] for reason, found in facts.items()}

    told = "greys of 12 bits in a file of 16, scaled by their own range"
    assert indexed() == ({"listed": 6, "images": 4, "set_aside": 1, "left_out": 1}, {told: 3})
    (tmp_path / "rays" / "chest" / "0.png").unlink()
    assert indexed() == ({"listed": 5, "images": 3, "set_aside": 1, "left_out": 1}, {told: 2})


def test_a_shard_with_corrected_notes_keeps_the_images_behind_secret_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, root = tmp_path / "photos.csv", str(tmp_path / "root")
    with guarded_images(Guarded({"/a.png": photo(0, 48, 40)}, "pa55", set())) as served:
        row = f"http://reader:pa55@{served.host}/a.png,rome"
        manifest.write_text(f"uri,label,detail\n{row},\n")
        monkeypatch.setenv(ALLOW, json.dumps([f"http://{served.host}/"]))
        indexing.index.fn(root, str(manifest), None, MINED, 10, 0.0)
        manifest.write_text(f"uri,label,detail\n{row},Lazio\n")
        *_, state = indexing.index.fn(root, str(manifest), None, MINED, 10, 0.0)
        assert served.asked == {"/a.png": 1}
    (shard,) = dataset_shards(root, state.key, state.stage)
    (image,) = good(open_root(root), shard)
    assert image.detail == "Lazio"
    assert f"/{shard.key}/" in image.uri, "of its own unit"
    assert read_bytes(image.uri) == photo(0, 48, 40)
    assert indexing.part_of(open_root(root), shard, [image]) == shard


@pytest.mark.parametrize(
    ("of", "name", "value"),
    [("counts", "listed", None), ("facts", "set_aside", None), ("facts", "left_out", {"x": 3})],
)
def test_a_state_of_the_dataset_whose_manifest_misses_something_is_made_anew(
    of: str, name: str, value: object, tmp_path: Path
) -> None:
    dataset, root = str(tmp_path / "photos"), str(tmp_path / "root")
    put(dataset, "red/0.png", photo(0))
    first = indexing.index.fn(root, dataset, None, MINED, 2, 0.1)
    file = tmp_path / "root" / "manifests" / first[-1].stage / f"{first[-1].key}.json"
    sound = json.loads(file.read_text())
    damaged = {key: told for key, told in sound[of].items() if key != name}
    if value is not None:
        damaged[name] = value
    file.write_text(json.dumps(sound | {of: damaged}))
    again = indexing.index.fn(root, dataset, None, MINED, 2, 0.1)
    assert again[-1].key == first[-1].key
    assert json.loads(file.read_text())[of] == sound[of]
    assert len(list((tmp_path / "root" / "retracted" / first[-1].stage).iterdir())) == 1
