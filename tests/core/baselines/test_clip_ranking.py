"""CLIP ranking with a small random CLIP, laid out as the published ones are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import save_whole_clip
from transformers import CLIPModel

from diffmining_core.baselines.clip_files import ALGO, find_clip
from diffmining_core.baselines.clip_ranking import (
    MEAN,
    STD,
    Clip,
    clip_features,
    clip_map,
    load_clip,
)
from diffmining_core.errors import InputError
from diffmining_core.patches.scoring import upsample_bilinear

SIDE, TOKEN = 28, 14
"""Pixels along the images that the small CLIP was made for, and along a token."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clip")
    save_whole_clip(made)
    return made


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return load_clip(find_clip(str(folder)), "cpu")


def drawn(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@torch.no_grad()
def test_tokens_are_those_of_transformers(folder: Path, clip: Clip) -> None:
    """An image of the model's own size; the whole image's token goes the same way, which checks
    the last normalisation and the projection against CLIP's own embedding of the image."""
    model = CLIPModel.from_pretrained(folder).eval()
    pixels = drawn(SIDE, SIDE)
    values = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    values = values.permute(2, 0, 1)[None].float()
    hidden = model.vision_model(pixel_values=values).last_hidden_state
    projected = model.visual_projection(model.vision_model.post_layernorm(hidden))[0]
    whole = model.visual_projection(model.vision_model(pixel_values=values).pooler_output)[0]
    torch.testing.assert_close(projected[0], whole)
    expected = torch.nn.functional.normalize(projected[1:], dim=1)
    tokens = clip.image_tokens(pixels)
    assert tokens.shape == (32, 2, 2)
    torch.testing.assert_close(tokens.flatten(1).T, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_prompt_is_embedded_as_transformers_does(folder: Path, clip: Clip) -> None:
    model = CLIPModel.from_pretrained(folder).eval()
    ids = torch.tensor([[512, *b"an image", 513]])
    mine = clip.tokenizer(["an image"], return_tensors="pt").input_ids
    pooled = model.text_model(input_ids=mine).pooler_output
    expected = torch.nn.functional.normalize(model.text_projection(pooled)[0], dim=0)
    torch.testing.assert_close(clip.embed_prompt("an image"), expected, rtol=1e-4, atol=1e-5)
    assert mine[0, 0] == ids[0, 0]
    assert mine[0, -1] == ids[0, -1]


def test_a_longer_side_has_more_tokens_and_all_of_the_image_is_seen(clip: Clip) -> None:
    assert clip.image_tokens(drawn(64, 64)).shape == (32, 2, 2)
    assert clip.image_tokens(drawn(64, 96)).shape == (32, 2, 3)
    assert clip.image_tokens(drawn(160, 64)).shape == (32, 5, 2)
    pixels = drawn(64, 96)
    changed = pixels.copy()
    changed[:, -8:] = 0
    different = (clip.image_tokens(pixels) - clip.image_tokens(changed)).abs().amax(dim=(0, 1))
    assert different[-1] > 1e-3


def test_a_map_is_the_cosine_with_the_prompt_less_that_with_the_null_prompt(clip: Clip) -> None:
    tokens = clip.image_tokens(drawn(64, 96))
    prompt, null = clip.embed_prompt("An image of Oslo."), clip.embed_prompt("")
    made = clip_map(tokens, prompt, null, (64, 96), 4)
    assert made.shape == (16, 24)
    likeness = np.array(
        [
            [float(tokens[:, r, c] @ prompt - tokens[:, r, c] @ null) for c in range(3)]
            for r in range(2)
        ]
    )
    upsampled = upsample_bilinear(likeness, (64, 96))
    expected = upsampled.reshape(16, 4, 24, 4).mean((1, 3))
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert np.abs(clip_map(tokens, null, null, (64, 96), 4)).max() == 0


def test_a_patchs_feature_is_the_mean_token_in_it(clip: Clip) -> None:
    tokens = clip.image_tokens(drawn(64, 96))
    left, all_of_it = clip_features(tokens, [(0, 0), (0, 0)], 32, (64, 96)), None
    np.testing.assert_allclose(left[0], tokens[:, 0, 0].numpy(), atol=1e-6)
    all_of_it = clip_features(tokens, [(0, 0)], 64, (64, 96))[0]
    mean = tokens[:, :, :2].mean(dim=(1, 2))
    np.testing.assert_allclose(all_of_it, (mean / mean.norm()).numpy(), atol=1e-6)


def test_the_models_settings_decide_how_colours_are_scaled(folder: Path, tmp_path: Path) -> None:
    save_whole_clip(tmp_path / "own")
    settings = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}
    (tmp_path / "own" / "preprocessor_config.json").write_text(json.dumps(settings))
    own = load_clip(find_clip(str(tmp_path / "own")), "cpu")
    assert (own.mean, own.std) == (settings["image_mean"], settings["image_std"])
    same, other = find_clip(str(folder)), find_clip(str(tmp_path / "own"))
    assert same.digest != other.digest


def test_the_digest_is_of_the_files_that_are_read(folder: Path, tmp_path: Path) -> None:
    save_whole_clip(tmp_path / "copy")
    found = find_clip(str(tmp_path / "copy"))
    before = found.digest
    assert before == find_clip(str(folder)).digest
    (tmp_path / "copy" / "pytorch_model.bin").write_bytes(b"a pickle that nobody opens")
    assert find_clip(str(tmp_path / "copy")).digest == before
    save_whole_clip(tmp_path / "copy", seed=2)
    assert find_clip(str(tmp_path / "copy")).digest != before


def test_what_is_no_whole_clip_is_refused(folder: Path, tmp_path: Path) -> None:
    save_whole_clip(tmp_path / "pickled")
    weights = tmp_path / "pickled" / "model.safetensors"
    weights.rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pickles \(.bin\) are never read"):
        find_clip(str(tmp_path / "pickled"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match="is of the kind 'bert'"):
        find_clip(str(tmp_path / "other"))
    save_whole_clip(tmp_path / "cut")
    cut = tmp_path / "cut" / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(InputError, match="cannot be loaded"):
        load_clip(find_clip(str(tmp_path / "cut")), "cpu")


def test_the_version_stands_for_these_maps(clip: Clip) -> None:
    """What goes wrong here needs another ALGO, and then other numbers."""
    prompts = clip.embed_prompt("An image of Oslo."), clip.embed_prompt("")
    made = clip_map(clip.image_tokens(drawn(64, 64)), *prompts, (64, 64), 32)
    assert ALGO == "clip-1"
    expected = [[-0.4987, -0.4029], [-0.4890, -0.3853]]
    np.testing.assert_allclose(made, expected, atol=1e-3)
