"""What has arrived of a published dataset, by the numbers in print."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from published_layouts import folder_of

from diffmining_core.recipes import load_recipe
from diffmining_core.recipes.arrival import arrived


@pytest.mark.parametrize(
    ("published", "complete"),
    [
        ({"all": 3, "labels": 2}, True),
        ({"all": 3}, True),
        ({"labels": 2}, True),
        ({"all": 4, "labels": 2}, False),
        ({"all": 3, "labels": 3}, False),
    ],
)
def test_a_dataset_is_complete_with_its_images_and_its_labels(
    tmp_path: Path, published: Mapping[str, int], complete: bool
) -> None:
    recipe = load_recipe("ftt")
    recipe = replace(recipe, download=replace(recipe.download, published=published))
    (split,) = arrived(recipe, folder_of("ftt", tmp_path))
    assert (split.images, split.labels) == (3, 2)
    assert split.is_complete == complete


def test_the_labels_in_print_are_those_that_are_mined(tmp_path: Path) -> None:
    recipe = load_recipe("places")
    published = {"mined": 6, "train": 3, "labels": 4}
    recipe = replace(recipe, download=replace(recipe.download, published=published))
    splits = {split.split: split for split in arrived(recipe, folder_of("places", tmp_path))}
    assert {name: split.labels for name, split in splits.items()} == {"mined": 3, "train": 3}
    assert {name: split.is_complete for name, split in splits.items()} == {
        "mined": False,
        "train": True,
    }
