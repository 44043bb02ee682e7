"""Random patches: what there is to beat.

In: the shapes of a shard's images. Out: patches under the same rule of no overlap, with random
scores, so that the choice of a label's best is random too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from diffmining_core.images.pixels import resized_hw
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.patches.scoring import HIGHEST, PATCH_SCHEMA, image_seed, random_patches

ALGO = "random-1"


def random_choice(
    images: Sequence[ShardImage], size: int, patch_size: int, per_image: int, seed: int
) -> pa.Table:
    """The patch table (PATCH_SCHEMA) of a shard, images at the model's `size`.

    Scores are uniform in [0, 1) and descend in each image; they depend on its id, its label and
    the seed alone.
    """
    rows = []
    for image in images:
        height, width = resized_hw(image.width, image.height, size)
        windows = (max(height - patch_size + 1, 0), max(width - patch_size + 1, 0))
        own_seed = image_seed(seed, image.image_id)
        picked = random_patches(windows, patch_size, per_image, own_seed)
        drawn = np.random.default_rng(image_seed(own_seed, image.label)).random(len(picked))
        rows += [
            {
                "image_id": image.image_id,
                "label": image.label,
                "kind": HIGHEST,
                "rank": rank,
                "y": y,
                "x": x,
                "size": patch_size,
                "typicality": score,
            }
            for rank, ((y, x), score) in enumerate(
                zip(picked, np.sort(drawn.astype(np.float32))[::-1], strict=True)
            )
        ]
    return pa.Table.from_pylist(rows, schema=PATCH_SCHEMA)
