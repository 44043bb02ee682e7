from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import current_fingerprint
from diffmining_core.images.shards import FoundImage, index_shard
from diffmining_core.models.pipelines import load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import complete, finished
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality.draws import INDEPENDENT, PAIRED
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality
from tasks import index
from tasks.index import good_images
from tasks.models import Device, base_model
from tasks.typicality import STAGE, set_aside_images, typicality
from tasks.units import Done

DRAWS = 2
LABELS = [["effusion", "mass"], ["mass"], ["effusion", "mass", "nodule"]]
"""Of three images."""


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    """Three images, a row for each of their labels; the first has been declared and is gone."""
    rng = np.random.default_rng(0)
    gone, *uris = [str(tmp_path / f"{place}.png") for place in range(3)]
    found = [FoundImage(gone, label, "", "0" * 32, 64, 64) for label in LABELS[0]]
    for uri, labels in zip(uris, LABELS[1:], strict=True):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(uri)
        found += [FoundImage(uri, label, current_fingerprint(uri)) for label in labels]
    table = index_shard(found)
    unit = Unit(index.STAGE, "test", (), {})
    root = open_root(str(tmp_path / "root"))
    complete(root, unit, lambda attempt: attempt.write_table(index.TABLE, table))
    return Shard(unit.key, unit.key, unit.key, (), 3, (), set_aside=0, declared=1)


def measured(tmp_path: Path, shard: Shard, max_bad_share: float, **changes: Any) -> Done:
    prompts = PromptTemplate("Chest X-Ray with {label}.", "Chest X-Ray.")
    options: dict[str, Any] = {
        **prompts.as_options(),
        "size": 64,
        "draws": DRAWS,
        "t_range": [0, 1],
        "seed": 42,
        **changes,
    }
    done: Done = typicality.fn(
        str(tmp_path / "root"),
        shard,
        base_model("tiny"),
        options,
        Device("cpu", "float32"),
        2,
        max_bad_share,
    )
    return done


def test_a_map_for_each_pair_and_the_null_branch_once_an_image(
    tmp_path: Path, shard: Shard
) -> None:
    done = measured(tmp_path, shard, max_bad_share=0.5)
    assert done.counts == {
        "images": 2,
        "pairs": 4,
        "set_aside": 1,
        "unet_forwards": DRAWS * (2 + 4),
    }
    root = open_root(str(tmp_path / "root"))
    manifest = finished(root, STAGE, done.key)
    assert manifest.facts == {"precision": "float32"}
    maps = read_maps(root, manifest)
    assert maps.label == ["mass", "effusion", "mass", "nodule"]
    assert len(set(maps.image_id)) == 2
    assert maps.null_loss[1] == maps.null_loss[2] == maps.null_loss[3] != maps.null_loss[0]
    assert 0 < maps.null_loss.min() < maps.null_loss.max() < 1

    ((uri, reason),) = set_aside_images(root, [shard], [done.key])
    assert uri == str(tmp_path / "0.png")
    assert "is not there" in reason


def test_the_share_that_is_set_aside_is_of_images_whatever_their_labels(
    tmp_path: Path, shard: Shard
) -> None:
    with pytest.raises(InputError, match=r"^1 of 3 images of a shard cannot be used"):
        measured(tmp_path, shard, max_bad_share=0.3)


def test_draws_are_spread_as_the_options_say(tmp_path: Path, shard: Shard) -> None:
    """The paper's own draws: each stands by itself, and none is another's opposite."""
    root = open_root(str(tmp_path / "root"))
    found = {
        spread: measured(tmp_path, shard, 0.5, draws=4, spread=spread)
        for spread in (PAIRED, INDEPENDENT)
    }
    assert found[PAIRED].key != found[INDEPENDENT].key
    maps = {
        spread: read_maps(root, finished(root, STAGE, one.key)) for spread, one in found.items()
    }
    assert (maps[PAIRED].together, maps[INDEPENDENT].together) == (2, 1)
    image = good_images(root, shard)[2]
    prompts = PromptTemplate("Chest X-Ray with {label}.", "Chest X-Ray.")
    how = TypicalityOptions(prompts, 64, 4, (0, 1), 42, spread=INDEPENDENT)
    expected, _ = shard_typicality(load_pipeline("tiny"), [image], how)
    np.testing.assert_allclose(maps[INDEPENDENT].map(0), expected[0].mean, atol=1e-6)
    assert np.abs(maps[PAIRED].map(0) - expected[0].mean).max() > 1e-4
