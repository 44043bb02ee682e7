"""The features of selected patches, image by image, by whatever embeds patches of an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.images.pixels import load_pixels

Pixels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]
Embed = Callable[[Pixels, Sequence[tuple[int, int]], int], Vectors]
"""Features [n, d] of the patches at n corners (y, x), of so many pixels, of an image [h, w, 3]."""


def with_features(
    patches: pa.Table, size: int, embed: Embed, on_image: Callable[[], None] = lambda: None
) -> pa.Table:
    """The patches, of one side and of images at the model's `size`, with a column `feature`.

    Each image is read once.
    """
    rows = patches.select(["image_id", "uri", "y", "x", "size"]).to_pylist()
    of_image: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        of_image[row["image_id"], row["uri"]].append(place)
    vectors: dict[int, Vectors] = {}
    for (image_id, uri), places in of_image.items():
        corners = [(rows[place]["y"], rows[place]["x"]) for place in places]
        pixels = load_pixels(uri, size, image_id)
        vectors |= zip(places, embed(pixels, corners, rows[places[0]]["size"]), strict=True)
        on_image()
    matrix = np.stack([vectors[place] for place in range(len(rows))])
    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    return patches.append_column("feature", column)
