from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from diffmining_core.images.pixels import content_id
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.street_scenes import write_dataset
from diffmining_core.models.pipelines import Pipeline, load_pipeline

SIDE = 64


@pytest.fixture(scope="session")
def tiny() -> Pipeline:
    """The pipeline that ships with the package."""
    return load_pipeline("tiny")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> list[ShardImage]:
    """A drawn scene of each of three countries, and one that is wider, in SIDE pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    write_dataset(folder / "drawn", 1, seed=3)
    images = []
    for place, path in enumerate(sorted((folder / "drawn").glob("*/*.png"))[:4]):
        with Image.open(path) as opened:
            size = (SIDE, SIDE) if place < 3 else (SIDE + 19, SIDE)
            image = opened.convert("RGB").resize(size)
        small = folder / f"{place}.png"
        image.save(small)
        id_ = content_id(small.read_bytes())
        images.append(ShardImage(id_, str(small), path.parent.name, *image.size))
    return images


@pytest.fixture(scope="session")
def latents_of(tiny: Pipeline) -> Callable[[list[ShardImage]], torch.Tensor]:
    """The VAE's means of images of one size."""

    def latents(images: list[ShardImage]) -> torch.Tensor:
        pixels = np.stack([np.array(Image.open(image.uri)) for image in images])
        return tiny.encode_pixels(pixels)[0]

    return latents
