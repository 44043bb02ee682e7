"""Generated images as stored: their golden version, and images that cannot be mined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffmining_core.errors import InputError
from diffmining_core.images.pixels import load_pixels
from diffmining_core.store.roots import open_root
from tasks.generated import ALGO, generate, generated_shard, generated_unit
from tasks.index import good_images
from tasks.models import Device, base_model

OPTIONS: dict[str, Any] = {
    "prompt": "A street in {label}.",
    "null_prompt": "",
    "label": "Peru",
    "images": 2,
    "guidance": 5.0,
    "steps": 3,
    "size": 64,
    "seed": 42,
}
CPU = Device("cpu", "float32")
GOLDEN = [151.038, 38.983, 172.133]


def test_golden(tmp_path: Path) -> None:
    """Other images under the same ALGO would mix with those stored: raise it with them."""
    model = base_model("tiny")
    done = generate.fn(str(tmp_path / "made"), model, OPTIONS, CPU)
    assert done.key == generated_unit(model, OPTIONS).key
    root = (tmp_path / "made").rename(tmp_path / "moved")  # its images are found where it is
    shard = generated_shard(str(root), done.key)
    assert shard.labels == (("Peru", 2),)
    pixels = np.stack(
        [load_pixels(image.uri, 64) for image in good_images(open_root(str(root)), shard)]
    )
    assert ALGO == "generated-1"
    found = [pixels.mean(), pixels.std(), pixels[0, 20:30, 20:30].mean()]
    np.testing.assert_allclose(found, GOLDEN, atol=0.5)  # of 255; the last bits are the machine's


def test_images_that_are_too_small_to_mine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 are not: shorter side is 16 px"):
        generate.fn(str(tmp_path), base_model("tiny"), {**OPTIONS, "size": 16}, CPU)
