"""Does typicality summed over an image name its label?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def label_accuracy(
    sums: npt.NDArray[np.floating[Any]], label_index: npt.NDArray[np.integer[Any]]
) -> dict[str, float]:
    """How often the label with the greatest summed typicality is the image's own.

    sums is [n, labels], the sum of each image's map under each label; label_index [n] is the column
    of its own. The label of the greatest sum is the choice of the diffusion classifier, as the null
    loss is the same under all labels. An image whose own label shares the greatest sum with others
    counts as one over their number, so that sums without information score at chance.

    Returns accuracy, standard_error (of the accuracy, over images) and chance (1 / labels), all in
    [0, 1]. ValueError for no image, for sums that are not finite and for shapes that do not match.
    """
    if sums.ndim != 2 or label_index.shape != sums.shape[:1] or not sums.size:
        raise ValueError(f"sums {sums.shape} and label_index {label_index.shape}: want [n, c], [n]")
    if not np.isfinite(sums).all():
        raise ValueError("summed typicality is not finite")
    greatest = sums == sums.max(axis=1, keepdims=True)
    own = np.take_along_axis(greatest, label_index[:, None], axis=1)[:, 0]
    credit = own / greatest.sum(axis=1)
    return {
        "accuracy": float(credit.mean()),
        "standard_error": float(credit.std() / np.sqrt(len(credit))),
        "chance": 1 / sums.shape[1],
    }
