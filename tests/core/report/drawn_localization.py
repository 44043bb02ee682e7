"""A localisation drawn from a seed: what the tests of its page look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffmining_core.localization.scores import map_score, score_table
from diffmining_core.report.localization import Localization, Seen
from diffmining_core.report.shown_addresses import ShownAddresses

CELL = 8


def drawn_localization(
    labels: Sequence[str],
    sides: Sequence[str] = ("before", "after"),
    images_per_label: int = 5,
) -> Localization:
    """A box in each image, which the maps tell the better the later the side."""
    seen = {
        (f"{place}-{number}", label): _seen(sides, place, number)
        for place, label in enumerate(labels)
        for number in range(images_per_label)
    }
    scores = score_table(
        (
            {"image_id": image_id, "uri": f'/x/{image_id} "<b>".png', "label": label},
            {
                side: map_score(np.kron(one, np.ones((CELL, CELL))), image.mask)
                for side, one in image.maps.items()
            },
        )
        for (image_id, label), image in seen.items()
    )
    return Localization(
        title="Localisation in <b>boxes</b>",
        scores=scores,
        facts={"notes": ["2 images are <not> scored."], "dataset": {"folder": "/x/<boxes>"}},
        shown=ShownAddresses(),
        look=lambda image_id, label: seen[image_id, label],
    )


def _seen(sides: Sequence[str], place: int, number: int) -> Seen:
    rng = np.random.default_rng([place, number])
    height, width = (16, 24) if number % 2 else (20, 12)
    mask = np.zeros((CELL * height, CELL * width), bool)
    y, x = rng.integers(0, CELL * height - 30), rng.integers(0, CELL * width - 30)
    mask[y : y + 28, x : x + 20] = True
    pixels = np.full((*mask.shape, 3), rng.integers(60, 200), np.uint8)
    cells = mask.reshape(height, CELL, width, CELL).mean((1, 3))
    maps = {
        side: (1e-3 * (rng.normal(size=cells.shape) + (1 + step) * cells)).astype(np.float32)
        for step, side in enumerate(sides)
    }
    return Seen(pixels, mask, maps)
