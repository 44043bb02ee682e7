"""Load a Stable-Diffusion-shaped pipeline and ask its parts for what mining needs.

Comes in: a hub id, a local diffusers folder, or `tiny` for the pipeline that ships with the
package. Goes out: a `Pipeline` whose methods embed prompts, encode images and predict noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from diffmining_core.errors import InputError
from diffmining_core.models.files import COMPONENTS, find_model, first_line, model_digest


@dataclass
class Pipeline:
    """The parts of a latent diffusion model, on one device and in one precision.

    `digest` is the sha256 over the component files, whatever folder they came from.
    `unet_forwards` counts the images that went through the UNet, the unit of cost everywhere.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    digest: str
    folder: Path
    unet_forwards: int = field(default=0)

    def __post_init__(self) -> None:
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        self.unet.register_forward_pre_hook(self._count_forwards)

    def _count_forwards(self, _module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.unet_forwards += arguments[0].shape[0]

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's precision."""
        dtype: torch.dtype = self.unet.dtype
        return dtype

    @property
    def cell(self) -> int:
        """Side of a latent position in image pixels: 8 for Stable Diffusion."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompt embeddings [len(prompts), tokens, d] from the text encoder's last layer."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        embeds: torch.Tensor = self.text_encoder(tokens.to(self.device))[0]
        return embeds.to(self.dtype)

    @torch.no_grad()
    def encode_posterior(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled as the UNet expects.

        `pixel_values` is float [n, 3, H, W] in [-1, 1], H and W multiples of `cell`. Both results
        are float32 [n, channels, H / cell, W / cell].
        """
        posterior = self.vae.encode(pixel_values.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def add_noise(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """x_t = sqrt(ā_t) x_0 + sqrt(1 - ā_t) ε, float32, for int64 `timesteps` [n]."""
        signal, sigma = self._signal_and_sigma(timesteps)
        return signal * latents + sigma * noise

    def predict(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """What the UNet itself predicts [n, channels, h, w], float32; see `training_target`."""
        prediction: torch.Tensor = self.unet(
            noisy_latents.to(self.dtype), timesteps, encoder_hidden_states=prompt_embeds
        ).sample.float()
        return prediction

    def predict_noise(
        self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """The predicted noise ε̂ [n, channels, h, w] in float32.

        A model trained to predict the velocity v = sqrt(ā) ε - sqrt(1 - ā) x_0 (Stable Diffusion
        2.x) is read as ε̂ = sqrt(ā) v̂ + sqrt(1 - ā) x_t.
        """
        prediction = self.predict(noisy_latents, timesteps, prompt_embeds)
        if self.scheduler.config.prediction_type == "epsilon":
            return prediction
        signal, sigma = self._signal_and_sigma(timesteps)
        return signal * prediction + sigma * noisy_latents.float()

    def training_target(
        self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """What `predict` should have said: the noise ε, or the velocity v of such a model."""
        if self.scheduler.config.prediction_type == "epsilon":
            return noise
        signal, sigma = self._signal_and_sigma(timesteps)
        return signal * noise - sigma * latents

    def _signal_and_sigma(self, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        alpha_bar = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        alpha_bar = alpha_bar.view(-1, 1, 1, 1).float()
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def save(self, folder: Path) -> None:
        """Write all parts as a diffusers folder that `StableDiffusionPipeline` loads."""
        index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
        for module in (self.unet, self.vae):
            # diffusers would write the folder it loaded from, and the digest would depend on it.
            module.register_to_config(_name_or_path="")
        for name in COMPONENTS:
            part = getattr(self, name)
            part.save_pretrained(folder / name)
            library = "transformers" if name in ("text_encoder", "tokenizer") else "diffusers"
            index[name] = [library, type(part).__name__]
        # Stable Diffusion's safety checker and feature extractor have no part in mining.
        for name in ("safety_checker", "feature_extractor", "image_encoder"):
            index[name] = [None, None]
        index["requires_safety_checker"] = False
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def load_pipeline(
    model: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Pipeline:
    """Load the pipeline that `model` names: `tiny`, a diffusers folder, or a hub id.

    Raises `InputError` if there is no such model, the hub cannot be reached, or the folder is no
    Stable Diffusion pipeline.
    """
    # Their bars for reading a file would stand between ours.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    folder = find_model(model)
    parts: dict[str, Any] = {}
    loaders = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    for name, loader in loaders.items():
        precision: dict[str, Any] = (
            {} if name in ("tokenizer", "scheduler") else {"torch_dtype": dtype}
        )
        if name == "text_encoder":
            precision = {"dtype": dtype}
        if precision:
            precision["use_safetensors"] = True
        try:
            parts[name] = loader.from_pretrained(folder / name, **precision)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise InputError(
                f"The {name} of model {model} cannot be loaded as {loader.__name__} with "
                f"safetensors weights ({first_line(error)}); give a Stable Diffusion pipeline "
                "saved by diffusers with safe_serialization=True."
            ) from error
    predicts = parts["scheduler"].config.prediction_type
    if predicts not in ("epsilon", "v_prediction"):
        raise InputError(
            f"Model {model} predicts {predicts!r}, but only models that predict the noise "
            "(epsilon) or the velocity (v_prediction) can be mined; give another model."
        )
    for name in ("unet", "vae", "text_encoder"):
        parts[name].to(device)
    return Pipeline(**parts, digest=model_digest(folder), folder=folder)
