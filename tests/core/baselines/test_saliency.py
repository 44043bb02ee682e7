"""The classifier's saliency on images whose labels are coloured spots at known places."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from diffmining_core.baselines import SALIENCY_ALGO
from diffmining_core.baselines.saliency import (
    TrainedClassifier,
    TrainingOptions,
    classifier_bytes,
    classifier_from,
    feature_map,
    pixel_values,
    saliency_features,
    saliency_map,
    train_classifier,
)
from diffmining_core.finetuning.images import Described, TrainingImage

LABELS = ("green", "red")
OPTIONS = TrainingOptions(60, 8, 3e-3, size=32, cell=4, seed=5)


class Spots:
    """Grey noise with a spot of 8 px in the label's colour, every fifth image unusable."""

    def __len__(self) -> int:
        return 20

    def describe(self, index: int) -> Described:
        return Described(f"{index:032x}", (LABELS[index % 2],))

    def corner(self, index: int) -> tuple[int, int]:
        y, x = np.random.default_rng(index).integers(0, 7, 2)
        return 4 * int(y), 4 * int(x)

    def pixels(self, index: int) -> npt.NDArray[np.uint8]:
        rng = np.random.default_rng([index, 1])
        pixels = np.repeat(rng.integers(60, 200, (32, 40, 1)), 3, axis=2)
        y, x = self.corner(index)
        pixels[y : y + 8, x : x + 8] = (210, 20, 20) if index % 2 else (20, 210, 20)
        return pixels.astype(np.uint8)

    def load(self, index: int) -> TrainingImage | None:
        if index % 5 == 4:
            return None
        described = self.describe(index)
        return TrainingImage(self.pixels(index), described.labels, None, described.image_id)


@pytest.fixture(scope="module")
def trained() -> TrainedClassifier:
    return train_classifier(Spots(), LABELS, OPTIONS, "cpu")


def test_saliency_is_highest_where_the_label_is(trained: TrainedClassifier) -> None:
    assert trained.accuracy > 0.9
    spots, right = Spots(), 0
    for index in range(30, 50):  # none of them was trained on
        features = feature_map(trained.model, spots.pixels(index))
        made = saliency_map(trained.model, features, index % 2)
        assert made.shape == (8, 10)
        y, x = (int(at) for at in np.unravel_index(made.argmax(), made.shape))
        top, left = (corner // 4 for corner in spots.corner(index))
        right += top - 1 <= y <= top + 2 and left - 1 <= x <= left + 2
    assert right >= 16


@torch.no_grad()
def test_the_mean_of_a_map_is_the_classifiers_score(trained: TrainedClassifier) -> None:
    pixels = Spots().pixels(3)
    (scores,) = trained.model(pixel_values(pixels[None]))
    features = feature_map(trained.model, pixels)
    for label in range(2):
        made = saliency_map(trained.model, features, label)
        assert made.mean() == pytest.approx(float(scores[label] - scores.mean()), abs=1e-5)


def test_training_is_the_same_each_time_and_leaves_randomness_alone(
    trained: TrainedClassifier,
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    seen: list[float] = []
    again = train_classifier(Spots(), LABELS, OPTIONS, "cpu", seen.append)
    assert torch.rand(1) == expected
    assert len(seen) == OPTIONS.steps
    assert classifier_bytes(again) == classifier_bytes(trained)
    assert again.accuracy == trained.accuracy


def test_a_stored_classifier_is_the_same(trained: TrainedClassifier) -> None:
    stored = classifier_from(classifier_bytes(trained), len(LABELS), OPTIONS.cell, "cpu")
    pixels = Spots().pixels(1)
    torch.testing.assert_close(feature_map(stored, pixels), feature_map(trained.model, pixels))


@pytest.mark.parametrize("cell", [1, 2, 8, 16])
def test_a_place_is_a_cell_whatever_its_size(cell: int) -> None:
    options = TrainingOptions(1, 2, 1e-3, size=32, cell=cell, seed=0)
    made = train_classifier(Spots(), LABELS, options, "cpu")
    features = feature_map(made.model, np.zeros((32, 48, 3), np.uint8))
    assert features.shape[1:] == (32 // cell, 48 // cell)


def test_a_patchs_feature_is_the_mean_in_it(trained: TrainedClassifier) -> None:
    features = feature_map(trained.model, Spots().pixels(0))
    (pooled,) = saliency_features(features, [(8, 12)], 8, (32, 40))
    mean = features[:, 2:4, 3:5].mean(dim=(1, 2))
    np.testing.assert_allclose(pooled, (mean / mean.norm()).numpy(), atol=1e-6)


def test_the_version_stands_for_this_classifier() -> None:
    """What goes wrong here needs another version, and then other numbers."""
    options = TrainingOptions(3, 4, 1e-3, size=32, cell=8, seed=1)
    made = train_classifier(Spots(), LABELS, options, "cpu")
    features = feature_map(made.model, Spots().pixels(0))
    assert SALIENCY_ALGO == "saliency-1"
    expected = [0.1380, 0.0919, 0.1856, 0.3268, 0.1240]
    np.testing.assert_allclose(saliency_map(made.model, features, 0)[0], expected, atol=1e-2)
