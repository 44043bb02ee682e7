"""The study of generated images, run for real on a mined root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import GeneratedStudyParameters, MineParameters
from flows.study.generated import study_of_generated
from tasks.generated import generated_shard
from tasks.index import good_images

pytestmark = pytest.mark.usefixtures("prefect_api")


def test_generated_images_are_a_dataset_of_their_own_and_are_mined(
    parameters: Callable[..., MineParameters], root: Path, forwards: Counter[str]
) -> None:
    given = parameters(root).model_dump(exclude_unset=True)
    asked = GeneratedStudyParameters(
        **given, guidance=(1.0, 5.0), images=3, sampling_steps=2, patches=8
    )
    summary = study_of_generated(asked)
    mined = summary["mined"]
    assert [(one["name"], one["images"]) for one in mined] == [
        ("real", 16),
        ("guidance 1", 12),
        ("guidance 5", 12),
    ]
    assert all(one["told"]["chance"] == 0.25 for one in mined)
    assert len({one["highest"] for one in mined}) == 3
    assert "guidance 5" in (root / "study-generated.html").read_text()

    opened = open_root(str(root))
    made = read_manifests(opened, "generated")
    assert Counter(m.parameters["guidance"] for m in made) == {1.0: 4, 5.0: 4}
    for manifest in made:
        images = good_images(opened, generated_shard(str(root), manifest.key))
        assert [image.label for image in images] == [manifest.parameters["label"]] * 3
        with Image.open(images[0].uri) as picture:
            assert picture.size == (64, 64)
    before = forwards["images"]
    assert study_of_generated(asked)["mined"] == mined
    assert forwards["images"] == before
    # What is mined of the dataset itself knows nothing of them.
    again = mine(parameters(root))
    assert again["images"] == 16
    assert again["computed"] == {}
    assert forwards["images"] == before
