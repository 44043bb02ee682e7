"""What of a published dataset has arrived in a folder, told by the code that will index it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from diffmining_core.errors import InputError
from diffmining_core.images.sources import open_source
from diffmining_core.recipes.recipe import TRAIN, Recipe

SHARD_ROWS = 1000


@dataclass(frozen=True)
class Arrival:
    """What is there of one split: images, and under how many labels.

    published, published_labels: how many there are in print, None where it does not say; labels are
    those that are mined. unusable: rows by why, as far as a listing shows. left_out: images by why.
    problem: why nothing could be listed.
    """

    split: str
    images: int = 0
    labels: int = 0
    published: int | None = None
    published_labels: int | None = None
    unusable: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    problem: str | None = None

    @property
    def is_complete(self) -> bool:
        """Whether as many images and labels as published can be used."""
        enough = self.images >= max(self.published or 1, 1)
        return self.problem is None and enough and self.labels >= (self.published_labels or 0)


def arrived(recipe: Recipe, folder: str) -> list[Arrival]:
    """What is there of each split, by its layout; no image is opened."""
    return [_of_split(recipe, split, folder) for split in recipe.layouts]


def _of_split(recipe: Recipe, split: str, folder: str) -> Arrival:
    numbers = recipe.download.published
    published = numbers.get(split)
    published_labels = None if split == TRAIN else numbers.get("labels")
    unusable: Counter[str] = Counter()
    labels: set[str] = set()
    images = 0
    try:
        plan = open_source(folder, recipe.layout(split)).plan([], SHARD_ROWS)
        for shard in plan.new:
            images += len({row.uri for row in shard.images if row.fault is None})
            labels |= {row.label for row in shard.images if row.fault is None}
            unusable.update(row.fault for row in shard.images if row.fault is not None)
    except InputError as error:
        return Arrival(split, published=published, problem=str(error))
    left_out = plan.left_out.counts
    return Arrival(split, images, len(labels), published, published_labels, unusable, left_out)
