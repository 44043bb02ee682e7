"""The tasks of CLIP ranking, the classifier and random patches, on a few made images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from patterned_scenes import CELL, PATTERN, SIZE, indexed, write_scenes
from small_models import save_whole_clip

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from tasks import clip_ranking, features, patches, saliency
from tasks.index import good_images
from tasks.patches import patches as patches_task
from tasks.random_choice import random_patches
from tasks.selection import label_digests, select

PROMPTS = PromptTemplate("An image of {label}.", "")
CLIP_OPTIONS = {**PROMPTS.as_options(), "size": SIZE, "cell": CELL}
TRAINING = {
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "size": SIZE,
    "cell": CELL,
    "seed": 2,
}
PATCHES = {"size": PATTERN, "per_image": 2, "seed": 4, "cell": CELL}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Shard]]:
    folder = tmp_path_factory.mktemp("patterned")
    write_scenes(folder / "scenes", 3)
    root = str(folder / "root")
    return root, indexed(root, folder / "scenes", 4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> clip_ranking.ClipReference:
    folder = tmp_path_factory.mktemp("clip")
    save_whole_clip(folder)
    return clip_ranking.clip_reference(str(folder))


def chosen(root: str, dataset: list[Shard], stage: str, keys: list[str]) -> str:
    """The key of the selection that maps of a stage lead to."""
    picked = patches_task.fn(root, keys, PATCHES, 0, stage)
    key: str = select.fn(root, dataset, [done.key for done in picked], 6, 0).key
    return key


def test_clips_maps_lead_to_patches_and_their_features(
    made: tuple[str, list[Shard]], model: clip_ranking.ClipReference
) -> None:
    root, dataset = made
    opened = open_root(root)
    keys = [clip_ranking.clip.fn(root, shard, model, CLIP_OPTIONS, "cpu").key for shard in dataset]
    for shard, key in zip(dataset, keys, strict=True):
        maps = read_maps(opened, finished(opened, clip_ranking.STAGE, key))
        pairs = [(image.image_id, image.label) for image in good_images(opened, shard)]
        assert list(zip(maps.image_id, maps.label, strict=True)) == pairs
        assert maps.map(0).shape == (SIZE // CELL, SIZE // CELL)
        assert set(maps.n_draws.tolist()) == {1}
        assert maps.values.std() > 0
    selection = chosen(root, dataset, clip_ranking.STAGE, keys)
    for label, digest in label_digests(root, selection).items():
        given = (root, label, digest, selection, model, CLIP_OPTIONS, "cpu")
        done = clip_ranking.clip_features.fn(*given)
        table = read_table(opened, finished(opened, features.STAGE, done.key), features.TABLE)
        vectors = features.feature_matrix(table)
        assert vectors.shape == (6, 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        assert set(table["label"].to_pylist()) == {label}


def test_another_clip_of_the_same_name_is_refused(
    made: tuple[str, list[Shard]], tmp_path: Path
) -> None:
    save_whole_clip(tmp_path, seed=4)
    planned = clip_ranking.clip_reference(str(tmp_path))
    save_whole_clip(tmp_path, seed=5)
    root, dataset = made
    with pytest.raises(InputError, match="as where this run was planned"):
        clip_ranking.clip.fn(root, dataset[0], planned, CLIP_OPTIONS, "cpu")


def test_the_classifiers_maps_lead_to_patches_and_their_features(
    made: tuple[str, list[Shard]],
) -> None:
    root, dataset = made
    opened = open_root(root)
    trained = saliency.classifier.fn(root, dataset, TRAINING, "cpu").key
    assert finished(opened, saliency.CLASSIFIER_STAGE, trained).facts["labels"] == ["fall", "rise"]
    assert 0 <= saliency.trained_accuracy(root, trained) <= 1
    keys = [saliency.saliency.fn(root, shard, trained, "cpu").key for shard in dataset]
    maps = read_maps(opened, finished(opened, saliency.STAGE, keys[0]))
    assert maps.map(0).shape == (SIZE // CELL, SIZE // CELL)
    selection = chosen(root, dataset, saliency.STAGE, keys)
    digests = label_digests(root, selection)
    given = (root, "rise", digests["rise"], selection, trained, "cpu")
    done = saliency.saliency_features.fn(*given)
    table = read_table(opened, finished(opened, features.STAGE, done.key), features.TABLE)
    assert features.feature_matrix(table).shape == (6, 64)


def test_maps_of_both_labels_of_one_shard_differ_in_sign(made: tuple[str, list[Shard]]) -> None:
    """With two labels, what speaks for one speaks against the other."""
    from diffmining_core.baselines.reading import labelled_pixels
    from diffmining_core.baselines.saliency import classifier_from, feature_map, saliency_map
    from diffmining_core.store.ledger import read_bytes

    root, dataset = made
    opened = open_root(root)
    trained = saliency.classifier.fn(root, dataset, TRAINING, "cpu").key
    manifest = finished(opened, saliency.CLASSIFIER_STAGE, trained)
    weights = read_bytes(opened, manifest, saliency.WEIGHTS)
    classifier = classifier_from(weights, 2, CELL, "cpu")
    key = saliency.saliency.fn(root, dataset[0], trained, "cpu").key
    maps = read_maps(opened, finished(opened, saliency.STAGE, key))
    image = next(labelled_pixels(good_images(opened, dataset[0]), SIZE))
    seen = feature_map(classifier, image.pixels)
    own = ["fall", "rise"].index(image.labels[0])
    np.testing.assert_allclose(maps.map(0), saliency_map(classifier, seen, own), atol=1e-6)
    np.testing.assert_allclose(maps.map(0), -saliency_map(classifier, seen, 1 - own), atol=1e-5)


def test_random_patches_are_selected_like_any(made: tuple[str, list[Shard]]) -> None:
    root, dataset = made
    options = {"size": SIZE, "patch_size": PATTERN, "per_image": 2, "seed": 1}
    keys = [random_patches.fn(root, shard, options).key for shard in dataset]
    opened = open_root(root)
    table = read_table(opened, finished(opened, patches.STAGE, keys[0]), patches.TABLE)
    assert table.num_rows == 2 * dataset[0].images
    selection = select.fn(root, dataset, keys, 3, 0).key
    assert label_digests(root, selection).keys() == {"fall", "rise"}
