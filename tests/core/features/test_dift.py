from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffmining_core.features import ALGO
from diffmining_core.features.dift import TIMESTEP, dift, image_features, patch_features
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality.draws import draw


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.mark.parametrize("shape", [(4, 8, 8), (4, 8, 11)])
def test_dift_is_what_a_whole_pass_shows_at_the_second_up_block(
    pipeline: Pipeline, shape: tuple[int, int, int]
) -> None:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    draws = draw(42, shape, 3, (0.161, 0.162))
    embeds = pipeline.embed_prompts(["An image of France."])[0]
    seen: list[torch.Tensor] = []
    hook = pipeline.unet.up_blocks[1].register_forward_hook(
        lambda _module, _arguments, output: seen.append(output)
    )
    with torch.no_grad():
        for noise in draws.noise:
            t = torch.tensor([TIMESTEP])
            noisy = pipeline.scheduler.add_noise(latents[None], noise[None], t)
            pipeline.unet(noisy, t, encoder_hidden_states=embeds[None])
    hook.remove()
    expected = torch.cat(seen).mean(dim=0)

    found = dift(pipeline, latents, embeds, draws)
    assert found.shape[1:] == (4, -(-shape[2] // 2))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_blocks_behind_the_features_are_not_run_and_the_unet_is_left_whole(
    pipeline: Pipeline,
) -> None:
    later: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_: later.append("ran"))
        for module in (pipeline.unet.up_blocks[2], pipeline.unet.conv_out)
    ]
    latents = torch.zeros(4, 8, 8)
    embeds = pipeline.embed_prompts([""])
    draws = draw(42, (4, 8, 8), 1, (0.161, 0.162))
    dift(pipeline, latents, embeds[0], draws)
    assert later == []
    with torch.no_grad():
        pipeline.predict_noise(draws.noise, draws.timesteps, embeds)
    assert later == ["ran", "ran"]
    for hook in hooks:
        hook.remove()


def places(rows: int, columns: int) -> torch.Tensor:
    """A feature map that says where its cells are: (row, column, 1)."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([row, column, torch.ones_like(row)]).float()


@pytest.mark.parametrize(
    ("patch", "size", "mean_cell"),
    [
        ((0, 0), 16, (0, 0)),
        ((15, 16), 16, (0, 1)),
        ((8, 8), 32, (0.5, 0.5)),  # ends at 40, in the third cell, which is left out
        ((48, 48), 16, (3, 3)),
        ((32, 0), 32, (2.5, 0.5)),
        ((20, 3), 8, (1, 0)),  # within one cell
        ((60, 60), 4, (3, 3)),
    ],
)
def test_a_patch_takes_the_cells_from_its_floored_start_to_its_floored_end(
    patch: tuple[int, int], size: int, mean_cell: tuple[float, float]
) -> None:
    feature = patch_features(places(4, 4), [patch], size, (64, 64))[0]
    assert tuple((feature[:2] / feature[2]).tolist()) == pytest.approx(mean_cell, abs=1e-6)


def test_patch_features_are_normalised_means_over_cells() -> None:
    """Against a sum over all cells, one by one, on a map that does not divide the image."""
    rng = np.random.default_rng(0)
    (h, w), (rows, columns), size = (72, 104), (5, 7), 24
    feature_map = rng.normal(size=(6, rows, columns)).astype(np.float32)
    patches = [(int(y), int(x)) for y, x in rng.integers(0, (h - size + 1, w - size + 1), (20, 2))]
    patches += [(0, 0), (h - size, w - size)]
    found = patch_features(torch.from_numpy(feature_map), patches, size, (h, w)).numpy()
    for (y, x), feature in zip(patches, found, strict=True):
        cells = [
            feature_map[:, r, c]
            for r in range(rows)
            for c in range(columns)
            if int(y / h * rows + 1e-9) <= r < int((y + size) / h * rows + 1e-9)
            and int(x / w * columns + 1e-9) <= c < int((x + size) / w * columns + 1e-9)
        ]
        mean = np.mean(cells, axis=0)
        np.testing.assert_allclose(feature, mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def features(pipeline: Pipeline, **changes: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = {
        "pixels": np.random.default_rng(3).integers(0, 256, (64, 80, 3), np.uint8),
        "prompt_embeds": pipeline.embed_prompts(["An image of France."])[0],
        "patches": [(0, 0), (48, 64), (20, 30)],
        "patch_size": 16,
        "seed": 42,
        "image_id": "a",
    }
    return image_features(pipeline, **{**values, **changes})


def test_a_patchs_feature_depends_on_its_image_alone(pipeline: Pipeline) -> None:
    together = features(pipeline)
    assert together.shape == (3, 64)
    assert together.dtype == np.float32
    np.testing.assert_array_equal(features(pipeline, patches=[(48, 64)])[0], together[1])
    assert np.abs(features(pipeline, image_id="b") - together).max() > 1e-4
    assert np.abs(features(pipeline, seed=43) - together).max() > 1e-4


def test_golden_output_of_this_version(pipeline: Pipeline) -> None:
    latents = torch.randn((4, 8, 10), generator=torch.Generator().manual_seed(0))
    embeds = pipeline.embed_prompts(["An image of France."])[0]
    feature_map = dift(pipeline, latents, embeds, draw(42, (4, 8, 10), 2, (0.161, 0.162)))
    found = patch_features(feature_map, [(0, 0), (48, 64), (20, 30)], 16, (64, 80))[:, [0, 31, 63]]
    expected = torch.tensor(
        [
            [-0.0452004, -0.0053470, -0.1022023],
            [-0.1043044, 0.0833843, 0.0162085],
            [-0.1195905, 0.0935658, -0.2216997],
        ]
    )
    message = "if you changed the maths on purpose, raise features.ALGO and update these numbers"
    assert ALGO == "features-1", message
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-5, msg=lambda why: f"{message}\n{why}"
    )
