"""Which images a step sees and which none ever sees: functions of the seed and the images' ids."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from diffmining_core.finetuning.images import LabelledImages
from diffmining_core.finetuning.options import FinetuneOptions

LEAST_TRAINED_PER_HELD_OUT = 10

Indices = npt.NDArray[np.int64]


class Sampling:
    """The split of the images and the order of those trained on.

    held_out: indices of the images kept out of training, at most a tenth of all, one for each
    image id; held_out_ids: their ids; seen: as many of those trained on, to set beside them. A
    held-out image's other copies in the dataset are not trained on either.
    """

    def __init__(self, images: LabelledImages, options: FinetuneOptions) -> None:
        self.options = options
        self.trained: Indices = np.arange(len(images))
        self.held_out: list[int] = []
        self.seen: list[int] = []
        self.held_out_ids: list[str] = []
        if options.held_out:
            self._hold_out(images)
        self.members: list[Indices] = []
        if options.sampling == "balanced":
            self.members = _members(images, self.trained)

    def indices(self, step: int) -> list[int]:
        """The images of one step."""
        options = self.options
        if options.sampling == "balanced":
            return balanced_indices(options.seed, step, options.batch_size, self.members)
        places = epoch_indices(options.seed, step, options.batch_size, len(self.trained))
        return [int(self.trained[place]) for place in places]

    def _hold_out(self, images: LabelledImages) -> None:
        """Hold out the images of the smallest ranks, but the last of no label."""
        ranks = np.empty(len(images), np.uint64)  # a number per image, and no more in memory
        left: Counter[str] = Counter()
        for index in range(len(images)):
            described = images.describe(index)
            ranks[index] = _rank(self.options.seed, described.image_id)
            left.update(described.labels)
        smallest, first, copies = np.unique(ranks, return_index=True, return_counts=True)
        wanted = min(self.options.held_out, len(smallest) // LEAST_TRAINED_PER_HELD_OUT)
        held_out: list[int] = []
        for number, index in enumerate(first if wanted else ()):
            labels = images.describe(int(index)).labels
            if len(held_out) < wanted and all(left[label] > copies[number] for label in labels):
                held_out.append(number)
                left.subtract({label: int(copies[number]) for label in labels})
            elif len(self.seen) < len(held_out):
                self.seen.append(int(index))
            if len(self.seen) == wanted:
                break
        self.held_out = [int(first[number]) for number in held_out]
        self.held_out_ids = [images.describe(index).image_id for index in self.held_out]
        self.trained = np.flatnonzero(~np.isin(ranks, smallest[held_out]))


def epoch_indices(seed: int, step: int, batch_size: int, total: int) -> list[int]:
    """Which of `total` a step sees: consecutive places in shuffled epochs laid end to end."""
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(_epoch_order(seed, place // total, total)[place % total]) for place in places]


def balanced_indices(
    seed: int, step: int, batch_size: int, members: Sequence[Indices]
) -> list[int]:
    """Which images a step sees where each label comes as often as any other.

    Labels come in shuffled epochs laid end to end, so that the n-th epoch asks each label for its
    n-th image; a label's images come in shuffled epochs of their own. members: the images of each
    label.
    """
    indices = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, within = divmod(place, len(members))
        label = int(_label_order((seed, epoch), len(members))[within])
        images = members[label]
        again, image = divmod(epoch, len(images))
        indices.append(int(images[_label_order((seed, again, label), len(images))[image]]))
    return indices


@lru_cache(maxsize=2)  # a step meets two epochs at most, unless it is longer than one
def _epoch_order(seed: int, epoch: int, total: int) -> Indices:
    return np.random.default_rng((seed, epoch)).permutation(total)


@lru_cache(maxsize=1024)
def _label_order(seeds: tuple[int, ...], total: int) -> Indices:
    return np.random.default_rng(seeds).permutation(total)


def _members(images: LabelledImages, trained: Indices) -> list[Indices]:
    found: dict[str, array[int]] = {}
    for index in trained:
        for label in images.describe(int(index)).labels:
            found.setdefault(label, array("q")).append(int(index))
    return [np.array(found[label], np.int64) for label in sorted(found)]


def _rank(seed: int, image_id: str) -> int:
    digest = hashlib.sha256(f"{seed}/held out/{image_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big")
