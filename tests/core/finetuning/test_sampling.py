from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from drawn_images import Drawn

from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.sampling import Sampling, balanced_indices, epoch_indices

OPTIONS = FinetuneOptions(steps=2, batch_size=4)


def drawn(labels: list[str | tuple[str, ...]]) -> Drawn:
    return Drawn([(8, 8)] * len(labels), labels)


@pytest.mark.parametrize(("batch_size", "total"), [(3, 7), (7, 7), (10, 4), (1, 3)])
def test_each_epoch_shows_every_image_once(batch_size: int, total: int) -> None:
    steps = -(-4 * total // batch_size)
    seen = [i for step in range(steps) for i in epoch_indices(42, step, batch_size, total)]
    assert len(seen) == steps * batch_size
    epochs = [seen[start : start + total] for start in range(0, 4 * total, total)]
    assert all(sorted(epoch) == list(range(total)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert epoch_indices(42, 1, batch_size, total) == seen[batch_size : 2 * batch_size]


def test_balanced_steps_show_each_label_as_often_and_its_images_in_epochs() -> None:
    members = [np.array([3]), np.array([0, 2, 4]), np.array([1, 5])]
    label_of = {int(i): label for label, images in enumerate(members) for i in images}
    seen = [i for step in range(9) for i in balanced_indices(42, step, 4, members)]
    epochs = [seen[start : start + 3] for start in range(0, 36, 3)]
    assert all(sorted(label_of[i] for i in epoch) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(label_of[i] for i in epoch) for epoch in epochs}) > 1
    for images in members:
        own = [i for i in seen if i in images]
        for start in range(0, 12, len(images)):
            assert sorted(own[start : start + len(images)]) == sorted(images)
    assert balanced_indices(42, 5, 4, members) == seen[20:24]
    assert balanced_indices(43, 5, 4, members) != seen[20:24]


def test_an_image_of_two_labels_is_among_the_images_of_both() -> None:
    images = drawn([("a", "b"), "a", "a", "a"])
    sampling = Sampling(images, FinetuneOptions(steps=1, batch_size=2, sampling="balanced"))
    seen = Counter(i for step in range(60) for i in sampling.indices(step))
    assert seen[0] == 60 + 15
    assert seen[1] == seen[2] == seen[3] == 15


def test_held_out_images_are_never_trained_on_nor_their_copies() -> None:
    images = drawn(["a", "b"] * 20)
    described = images.describe
    copies = {39: 1, 38: 0}
    images.describe = lambda index: described(copies.get(index, index))  # type: ignore[method-assign] # copies
    options = FinetuneOptions(steps=1, batch_size=5, held_out=3)
    sampling = Sampling(images, options)
    assert len(set(sampling.held_out)) == len(set(sampling.seen)) == 3
    assert sampling.held_out_ids == [images.describe(i).image_id for i in sampling.held_out]
    trained = {i for step in range(20) for i in sampling.indices(step)}
    assert trained == set(sampling.trained.tolist())
    assert not {images.describe(i).image_id for i in trained} & set(sampling.held_out_ids)
    assert set(sampling.seen) <= trained
    again = Sampling(images, options)
    assert (again.held_out, again.seen) == (sampling.held_out, sampling.seen)


def test_which_are_held_out_depends_on_the_images_and_not_on_their_order() -> None:
    images = drawn(["a"] * 40)
    described = images.describe
    options = FinetuneOptions(steps=1, batch_size=5, held_out=4)
    first = Sampling(images, options).held_out_ids
    images.describe = lambda index: described(39 - index)  # type: ignore[method-assign] # turned round
    assert Sampling(images, options).held_out_ids == first


def test_at_most_a_tenth_is_held_out_and_the_last_of_no_label() -> None:
    assert len(Sampling(drawn(["a"] * 25), FinetuneOptions(1, 2, held_out=9)).held_out) == 2
    assert Sampling(drawn(["a"] * 9), FinetuneOptions(1, 2, held_out=9)).held_out == []
    lonely = drawn([f"label {i}" for i in range(30)])
    assert Sampling(lonely, FinetuneOptions(1, 2, held_out=3)).held_out == []
    mixed = drawn([*(f"label {i}" for i in range(30)), "a", "a"])
    assert set(Sampling(mixed, FinetuneOptions(1, 2, held_out=3)).held_out) < {30, 31}
