"""Sides that are no multiple of 8: every stage sees the same pixels, and all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from diffmining_core.features.dift import image_features, patch_features
from diffmining_core.images.pixels import content_id, load_pixels, resized_hw
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.images.street_scenes import draw_scene
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.patches.scoring import patch_scores
from diffmining_core.typicality.draws import sampled_latents
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

PATCH = 24
# (width, height) of the file, size, (h, w) of what is seen. At size 70 nothing is resampled.
CASES = [
    ((70, 93), 70, (88, 64)),
    ((93, 70), 70, (64, 88)),
    ((71, 71), 71, (64, 64)),
    ((200, 131), 64, (64, 96)),  # 97.7 px wide once resized: rounded to 98, then 2 are cut
]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


def scene(width: int, height: int) -> npt.NDArray[np.uint8]:
    drawn = draw_scene(np.random.default_rng(0), None, 256).image
    return np.array(drawn.crop((0, 0, width, height)))


def saved(pixels: npt.NDArray[np.uint8], path: Path) -> str:
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.mark.parametrize(("file_size", "size", "hw"), CASES)
def test_map_windows_and_features_cover_the_pixels_that_are_seen(
    pipeline: Pipeline, tmp_path: Path, file_size: tuple[int, int], size: int, hw: tuple[int, int]
) -> None:
    uri = saved(scene(*file_size), tmp_path / "a.png")
    pixels = load_pixels(uri, size)
    assert pixels.shape[:2] == hw == resized_hw(*file_size, size)

    options = TypicalityOptions(PromptTemplate(), size, draws=1, t_range=(0.1, 0.7), seed=1)
    image = ShardImage(content_id(Path(uri).read_bytes()), uri, "a", *file_size)
    maps, _ = shard_typicality(pipeline, [image], options, 1)
    rows, columns = maps[0].mean.shape
    assert (8 * rows, 8 * columns) == hw, "one position per 8 pixels, none cut, none added"

    windows = patch_scores(maps[0].mean, hw, PATCH).shape
    assert windows == (hw[0] - PATCH + 1, hw[1] - PATCH + 1), "windows reach both far edges"

    last = [(windows[0] - 1, windows[1] - 1)]
    embeds = pipeline.embed_prompts(["An image of a."])[0]
    found = image_features(pipeline, pixels, embeds, last, PATCH, 1, image.image_id)
    assert np.isfinite(found).all()
    feature_rows, feature_columns = rows // 2 + rows % 2, columns // 2 + columns % 2
    cells = torch.zeros(2, feature_rows, feature_columns)
    cells[0, -1, -1] = cells[1, 0, 0] = 1
    assert patch_features(cells, last, PATCH, hw)[0].tolist() == [1, 0], "the last cell is under it"


@pytest.mark.parametrize(("file_size", "size", "hw"), CASES[:3])
def test_what_is_cut_at_the_right_and_the_bottom_is_seen_by_no_stage(
    pipeline: Pipeline, tmp_path: Path, file_size: tuple[int, int], size: int, hw: tuple[int, int]
) -> None:
    """Where nothing is resampled: a change beyond the last multiple of 8 changes no latent, and one
    in the last pixel before it does."""
    pixels = scene(*file_size)
    beyond, within = pixels.copy(), pixels.copy()
    beyond[hw[0] :] = beyond[:, hw[1] :] = 0
    within[hw[0] - 1, hw[1] - 1] ^= 255
    versions = {"as it is": pixels, "beyond": beyond, "within": within}
    latents = {
        name: sampled_latents(
            pipeline, load_pixels(saved(version, tmp_path / f"{name}.png"), size)[None], ["id"], 1
        )
        for name, version in versions.items()
    }
    assert not np.array_equal(beyond, pixels)
    assert torch.equal(latents["beyond"], latents["as it is"])
    changed = (latents["within"] != latents["as it is"]).any(dim=1)[0]
    assert changed[-1, -1]
