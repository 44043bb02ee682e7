"""How well a patch alone tells its label: a linear classifier on what is known of the patch.

Comes in: features of patches, the label and the image of each. Goes out: how often the label of a
patch from an image that the classifier has not seen is named, as a mean over labels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

from diffmining_core.errors import InputError

ALGO = "predictability-1"
"""Version of these measures; part of their units' keys."""

FOLDS = 5
PENALTIES = tuple(10.0**power for power in range(-1, 5))
"""Of the squared weights, from which each fold chooses by leaving out one patch at a time."""
COLOURS_SIDE = 8
"""Side in cells to which a patch is shrunk where its colours are all that is seen of it."""


@dataclass(frozen=True)
class Predicted:
    """How often the label is named; shares of 1.

    accuracy: mean over labels; standard_error: of that, over images; by_label: mean over a label's
    images of the share of their patches; chance: of a guess.
    """

    accuracy: float
    standard_error: float
    chance: float
    by_label: dict[str, float]


def predictability(
    features: npt.NDArray[np.floating[Any]],
    labels: Sequence[str],
    images: Sequence[str],
    seed: int = 0,
) -> Predicted:
    """How well features [n, d] tell the labels [n] of patches in images [n].

    FOLDS times the classifier learns from all images but a part and is asked about those, so that
    no image is in both; labels are weighed alike, features standardised. InputError where a label
    has fewer than two images, or there is but one label.
    """
    # These take seconds, for which only this study has to wait.
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    label, image = np.array(labels), np.array(images)
    names = sorted(set(labels))
    of_label = {name: len(set(image[label == name].tolist())) for name in names}
    if len(names) < 2 or min(of_label.values()) < 2:
        raise InputError(
            "to tell labels from their patches, there should be at least two labels with patches "
            f"of at least two images each, but there are {of_label}; use a larger dataset or top."
        )
    folds = StratifiedGroupKFold(min(FOLDS, *of_label.values()), shuffle=True, random_state=seed)
    right = np.zeros(len(label), bool)
    points = features.astype(np.float64)
    with threadpool_limits(1):
        for seen, asked in folds.split(points, label, image):
            classifier = make_pipeline(
                StandardScaler(), RidgeClassifierCV(PENALTIES, class_weight="balanced")
            )
            classifier.fit(points[seen], label[seen])
            right[asked] = classifier.predict(points[asked]) == label[asked]
    by_label, variance = {}, 0.0
    for name in names:
        of_images: defaultdict[str, list[bool]] = defaultdict(list)
        for place in np.flatnonzero(label == name):
            of_images[str(image[place])].append(bool(right[place]))
        shares = np.array([np.mean(patches) for patches in of_images.values()])
        by_label[name] = float(shares.mean())
        variance += float(shares.var(ddof=1)) / len(shares)
    return Predicted(
        accuracy=float(np.mean(list(by_label.values()))),
        standard_error=variance**0.5 / len(names),
        chance=1 / len(names),
        by_label=by_label,
    )


def colours(patch: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """The colours of a patch uint8 [k, k, 3] at COLOURS_SIDE by COLOURS_SIDE cells, float32 [d]."""
    shrunk = Image.fromarray(patch).resize((COLOURS_SIDE, COLOURS_SIDE), Image.Resampling.BOX)
    return np.asarray(shrunk, np.float32).ravel() / np.float32(255)
