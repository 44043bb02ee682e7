from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffmining_core.errors import InputError
from diffmining_core.features import ALGO
from diffmining_core.features.dift import dift, image_features, patch_features
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.typicality.draws import INDEPENDENT, Draws, draw, sample_posterior


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.mark.parametrize(
    ("prediction", "shape"),
    [
        ("epsilon", (4, 8, 8)),
        ("epsilon", (4, 8, 11)),
        ("epsilon", (4, 64, 94)),
        ("v_prediction", (4, 9, 8)),
    ],
)
def test_dift_is_what_a_whole_pass_shows_at_the_second_up_block(
    prediction: str, shape: tuple[int, int, int]
) -> None:
    """Noise by noise in float64, the whole UNet, the noise added by the schedule's definition."""
    pipeline = build(0)
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type=prediction
    )
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    draws = draw(42, shape, 3 if shape[1] < 64 else 1, (0.161, 0.162))
    embeds = pipeline.embed_prompts(["An image of France."])[0]
    found = dift(pipeline, latents, embeds, draws)
    assert found.dtype == torch.float32
    assert found.shape[1:] == (-(-shape[1] // 2), -(-shape[2] // 2))

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)[161]
    unet = pipeline.unet.double()
    seen: list[torch.Tensor] = []
    unet.up_blocks[1].register_forward_hook(lambda _module, _arguments, out: seen.append(out))
    with torch.no_grad():
        for noise in draws.noise.double():
            noisy = alpha_bar.sqrt() * latents.double() + (1 - alpha_bar).sqrt() * noise
            unet(noisy[None], 161, encoder_hidden_states=embeds.double()[None])
    expected = torch.cat(seen).mean(dim=0)
    # Activations are about 1 to 10; float32 loses some 1e-6 of that on the way.
    torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_turns_a_feature_by_less_than_another_noise_does(
    dtype: torch.dtype,
) -> None:
    pipeline = build(0)
    exact = features(pipeline)
    pipeline.unet.to(dtype)
    rounded = features(pipeline)
    assert rounded.dtype == np.float32
    cosine = (exact * rounded).sum(axis=1)
    assert cosine.min() > {torch.bfloat16: 0.999, torch.float16: 0.99999}[dtype]
    pipeline.unet.float()
    assert cosine.min() > (exact * features(pipeline, seed=43)).sum(axis=1).max()


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


def test_an_images_features_are_the_mean_of_eight_noises_on_one_posterior_sample(
    pipeline: Pipeline,
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (64, 80, 3), np.uint8)
    latents = sample_posterior(*pipeline.encode_pixels(pixels[None]), 42, ["a"])[0]
    draws = draw(42, (4, 8, 10), 8, (0.161, 0.162), spread=INDEPENDENT)
    assert draws.timesteps.tolist() == [161] * 8
    embeds = pipeline.embed_prompts(["An image of France."])[0]
    single = [
        dift(pipeline, latents, embeds, Draws(noise[None], draws.timesteps[:1]))
        for noise in draws.noise
    ]
    mean_map = torch.stack(single).mean(dim=0).numpy()
    cell = mean_map[:, 1, 3]  # 16 × 16 px each, so the patch at (16, 48)
    found = features(pipeline, patches=[(16, 48)])[0]
    np.testing.assert_allclose(found, cell / np.linalg.norm(cell), atol=1e-5)


def test_golden_output_of_this_version(pipeline: Pipeline) -> None:
    latents = torch.randn((4, 8, 10), generator=torch.Generator().manual_seed(0))
    embeds = pipeline.embed_prompts(["An image of France."])[0]
    feature_map = dift(pipeline, latents, embeds, draw(42, (4, 8, 10), 2, (0.161, 0.162)))
    found = patch_features(feature_map, [(0, 0), (48, 64), (20, 30)], 16, (64, 80))[:, [0, 31, 63]]
    expected = torch.tensor(
        [
            [-0.0520508, -0.0486908, -0.0371787],
            [-0.0988597, 0.1377483, -0.0271394],
            [-0.1617995, 0.0178685, -0.1877102],
        ]
    )
    message = "if you changed the maths on purpose, raise features.ALGO and update these numbers"
    assert ALGO == "features-2", message
    torch.testing.assert_close(
        found, expected, rtol=1e-4, atol=1e-5, msg=lambda why: f"{message}\n{why}"
    )


def test_features_that_are_no_numbers_are_an_error() -> None:
    pipeline = build(0)
    pipeline.unet.conv_in.weight.mul_(1e5)
    pipeline.unet.half()
    with pytest.raises(InputError, match=r"features of a should be finite, .* UNet in float16"):
        features(pipeline)
