"""Images of two labels, each with a pattern of its own somewhere on blotched grey, and their index.

The pattern is a square of PATTERN px: stripes that fall for `fall`, that rise for `rise`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from diffmining_core.recipes import MINED
from diffmining_core.results.references import Shard
from tasks.index import dataset_shards, index

SIZE, PATTERN, CELL = 48, 16, 4
LABELS = ("fall", "rise")
COLOURS = {"fall": (200, 40, 40), "rise": (40, 60, 200)}

Corners = dict[str, tuple[int, int]]
"""(y, x) of the pattern, by the image's file name."""


def write_scenes(folder: Path, images_per_label: int) -> Corners:
    """Write `LABEL/LABEL-N.png`; returns where the patterns are."""
    corners = {}
    for place, label in enumerate(LABELS):
        (folder / label).mkdir(parents=True)
        for number in range(images_per_label):
            rng = np.random.default_rng([place, number])
            blots = Image.fromarray(rng.integers(90, 160, (6, 6)).astype(np.uint8))
            grey = blots.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            pixels = np.repeat(np.asarray(grey)[..., None], 3, axis=2).copy()
            y, x = (int(at) for at in rng.integers(0, SIZE - PATTERN, 2))
            pixels[y : y + PATTERN, x : x + PATTERN] = pattern(label)
            name = f"{label}-{number}.png"
            Image.fromarray(pixels).save(folder / label / name)
            corners[name] = (y, x)
    return corners


def pattern(label: str) -> npt.NDArray[np.uint8]:
    """Stripes of 4 px."""
    y, x = np.mgrid[:PATTERN, :PATTERN]
    stripes = (y + x if label == "rise" else y - x) // 4 % 2
    return np.where(stripes[..., None], np.array(COLOURS[label]), 250).astype(np.uint8)


def indexed(root: str, dataset: Path, shard_rows: int) -> list[Shard]:
    """The shards of a folder of scenes."""
    *_, state = index.fn(root, str(dataset), None, MINED, shard_rows, 0.0)
    return dataset_shards(root, state.key, state.stage)
