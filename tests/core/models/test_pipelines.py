from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from diffmining_core.errors import InputError
from diffmining_core.models.files import TINY, find_model, model_digest
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.tiny.train_base import build


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return build(0)


@pytest.fixture(scope="module")
def saved(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save(folder)
    return folder


@pytest.fixture
def broken(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(saved, tmp_path / "broken")


def noisy_batch(n: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, noise and timesteps of n images."""
    generator = torch.Generator().manual_seed(1)
    latents, noise = torch.randn(2, n, 4, 8, 8, generator=generator)
    return latents, noise, torch.tensor([0, 161, 500, 999])[-n:]


def test_a_saved_pipeline_comes_back_with_equal_parts(pipeline: Pipeline, saved: Path) -> None:
    loaded = load_pipeline(str(saved))
    for name in ("unet", "vae", "text_encoder"):
        expected = getattr(pipeline, name).state_dict()
        found = getattr(loaded, name).state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    prompts = ["", "An image of Perú."]
    torch.testing.assert_close(loaded.embed_prompts(prompts), pipeline.embed_prompts(prompts))
    assert loaded.digest == model_digest(saved)


def test_saving_again_elsewhere_keeps_the_digest(saved: Path, tmp_path: Path) -> None:
    loaded = load_pipeline(str(saved))
    for folder in (tmp_path / "a", tmp_path / "b"):
        loaded.save(folder)
        assert str(saved) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    copy = load_pipeline(str(shutil.copytree(saved, tmp_path / "copy")))
    copy.save(tmp_path / "c")
    assert len({model_digest(tmp_path / name) for name in "abc"}) == 1


def test_diffusers_opens_the_saved_folder_and_it_holds_no_pickle(
    pipeline: Pipeline, saved: Path
) -> None:
    assert {p.suffix for p in saved.rglob("*") if p.is_file()} <= {".json", ".safetensors", ".txt"}
    opened = StableDiffusionPipeline.from_pretrained(saved, safety_checker=None)
    latents, _, timesteps = noisy_batch()
    embeds = pipeline.embed_prompts(["", "a"])
    with torch.no_grad():
        found = opened.unet(latents, timesteps, encoder_hidden_states=embeds).sample
        expected = pipeline.predict_noise(latents, timesteps, embeds)
    torch.testing.assert_close(found, expected)


def test_the_built_in_model_has_the_noise_schedule_of_stable_diffusion() -> None:
    config = DDPMScheduler.from_pretrained(find_model(TINY).folders["scheduler"]).config
    betas = (config.beta_start, config.beta_end, config.beta_schedule)
    assert betas == (0.00085, 0.012, "scaled_linear")
    assert (config.num_train_timesteps, config.prediction_type) == (1000, "epsilon")
    assert not config.clip_sample
    assert config.steps_offset == 1  # diffusers warns of any other


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_never_read(broken: Path, part: str) -> None:
    (weights,) = (broken / part).glob("*.safetensors")
    name = {"text_encoder": "pytorch_model.bin"}.get(part, "diffusion_pytorch_model.bin")
    with (broken / part / name).open("wb") as file:
        pickle.dump({}, file)
    weights.unlink()
    with pytest.raises(InputError, match=f"The {part} of model .* safetensors") as caught:
        load_pipeline(str(broken))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_truncated_weight_file_is_named(broken: Path, part: str) -> None:
    (weights,) = (broken / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=f"The {part} of model .* cannot be loaded"):
        load_pipeline(str(broken))


def test_a_missing_configuration_is_named(broken: Path) -> None:
    (broken / "unet" / "config.json").unlink()
    with pytest.raises(InputError, match=r"The unet of model .* cannot be loaded"):
        load_pipeline(str(broken))


def test_a_model_that_predicts_something_else_is_refused(broken: Path) -> None:
    path = broken / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    with pytest.raises(InputError, match=r"prediction_type 'epsilon' or .*, but has 'sample'"):
        load_pipeline(str(broken))


def test_noise_is_added_as_diffusers_does(pipeline: Pipeline) -> None:
    latents, noise, timesteps = noisy_batch(4)
    expected = pipeline.scheduler.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(pipeline.add_noise(latents, noise, timesteps), expected)


def test_the_noise_of_an_epsilon_model_is_what_its_unet_says(pipeline: Pipeline) -> None:
    latents, noise, timesteps = noisy_batch()
    embeds = pipeline.embed_prompts(["", "a"])
    with torch.no_grad():
        expected = pipeline.unet(latents, timesteps, encoder_hidden_states=embeds).sample
        torch.testing.assert_close(pipeline.predict_noise(latents, timesteps, embeds), expected)
    assert pipeline.training_target(latents, noise, timesteps) is noise


def test_a_velocity_model_is_read_by_the_definition_of_the_velocity() -> None:
    pipeline = build(0)
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction"
    )
    latents, noise, timesteps = noisy_batch(4)
    velocity = pipeline.scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(pipeline.training_target(latents, noise, timesteps), velocity)
    # A UNet that says the true velocity knows the true noise.
    pipeline.unet.register_forward_hook(
        lambda _module, _arguments, output: type(output)(sample=velocity)
    )
    noisy = pipeline.add_noise(latents, noise, timesteps)
    with torch.no_grad():
        noise_pred = pipeline.predict_noise(noisy, timesteps, pipeline.embed_prompts([""] * 4))
    torch.testing.assert_close(noise_pred, noise, atol=1e-5, rtol=0)


def test_prompts_are_padded_to_77_tokens_and_cut_there(pipeline: Pipeline) -> None:
    embeds = pipeline.embed_prompts(["", "An image of France.", "far too long " * 50])
    assert embeds.shape == (3, 77, 64)
    torch.testing.assert_close(pipeline.embed_prompts(["An image of France."])[0], embeds[1])
    assert not torch.allclose(embeds[0], embeds[1])


def test_the_posterior_is_the_vaes_scaled(pipeline: Pipeline) -> None:
    pixel_values = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = pipeline.encode_posterior(pixel_values)
    assert mean.shape == std.shape == (1, 4, 8, 9)
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixel_values).latent_dist
    torch.testing.assert_close(mean, posterior.mean * pipeline.vae.config.scaling_factor)
    torch.testing.assert_close(std, posterior.std * pipeline.vae.config.scaling_factor)
    assert pipeline.cell == 8


def test_images_through_the_unet_are_counted(pipeline: Pipeline) -> None:
    before = pipeline.unet_forwards
    latents, _, timesteps = noisy_batch(4)
    with torch.no_grad():
        pipeline.predict_noise(latents, timesteps, pipeline.embed_prompts(["a"] * 4))
    assert pipeline.unet_forwards - before == 4
