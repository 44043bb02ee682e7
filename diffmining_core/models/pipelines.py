"""Load a Stable-Diffusion-shaped pipeline and ask its parts for what mining needs.

Comes in: a hub id, a local diffusers folder, or `tiny` for the pipeline that ships with the
package. Goes out: a `Pipeline` whose methods embed prompts, encode images and predict noise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer

from diffmining_core.errors import InputError
from diffmining_core.models.compiled import Compiled
from diffmining_core.models.fetching import first_line
from diffmining_core.models.files import (
    COMPONENTS,
    ModelFiles,
    ModelSource,
    find_model,
    model_digest,
)
from diffmining_core.models.quiet import quiet_libraries

_COUNTING = Lock()


@dataclass
class Pipeline:
    """The parts of a latent diffusion model, on one device and in one precision.

    `digest` is the sha256 over the files it was loaded from, wherever they lie. The UNet alone may
    be in less than float32.
    `unet_forwards` counts the images that went through the UNet, the unit of cost everywhere.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler
    digest: str
    unet_forwards: int = field(default=0)
    rows_at_once: dict[tuple[int, ...], int] = field(default_factory=dict)
    """By latent shape, how many rows go through the UNet together (see `models.denoiser`)."""
    most_rows: dict[tuple[int, ...], int] = field(default_factory=dict)
    """By latent shape, the most that do since memory has run out."""
    compiled: Compiled = field(init=False)

    def __post_init__(self) -> None:
        for module in (self.unet, self.vae, self.text_encoder):
            module.requires_grad_(False).eval()
        self.unet.register_forward_pre_hook(self._count_forwards)
        self.compiled = Compiled("inductor" if self.device.type == "cuda" else None)

    def _count_forwards(self, _module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.count(arguments[0].shape[0])

    def count(self, forwards: int) -> None:
        """So many rows have gone through the UNet, whichever thread says so."""
        with _COUNTING:
            self.unet_forwards += forwards

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's precision."""
        return self._weight.dtype

    @property
    def _weight(self) -> torch.nn.Parameter:
        """One that is like all others: diffusers looks through all modules for each answer."""
        weight: torch.nn.Parameter = self.unet.conv_in.weight
        return weight

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
            # Not the tokenizer's own limit, which some repositories leave out.
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        embeds: torch.Tensor = self.text_encoder(tokens.to(self.device))[0]
        return embeds.to(self.dtype)

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> tuple[torch.Tensor, torch.Tensor]:
        """The posterior of images uint8 [n, H, W, 3], as `encode_posterior` returns it.

        Whatever encodes images does it here, so that one image has the same latents to the bit in
        finetuning, typicality, DIFT and translation. Each goes through the VAE alone: in a batch
        its last bits would depend on the batch's size.
        """
        posteriors = [self.encode_posterior(pixel_values(one[None])) for one in pixels]
        mean, std = (torch.cat(parts) for parts in zip(*posteriors, strict=True))
        return mean, std

    @torch.no_grad()
    def encode_posterior(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled as the UNet expects.

        `pixel_values` is float [n, 3, H, W] in [-1, 1], H and W multiples of `cell`. Both results
        are float32 [n, channels, H / cell, W / cell].
        """
        posterior = self.vae.encode(pixel_values.to(self.device, self.vae.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> npt.NDArray[np.uint8]:
        """The images uint8 [n, H, W, 3] of scaled latents [n, channels, h, w].

        One after the other: the decoder takes more memory than all else.
        """
        images = []
        for one in latents / self.vae.config.scaling_factor:
            pixels = self.vae.decode(one[None].to(self.device, self.vae.dtype)).sample[0].float()
            values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0)
            images.append(values.cpu().numpy())
        return np.stack(images)

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
        return self.as_noise(prediction, noisy_latents, timesteps)

    def as_noise(
        self, prediction: torch.Tensor, noisy_latents: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """The noise float32 in what the UNet predicted, both [n, channels, h, w]."""
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
        # Kept where it is used: a copy for every forward would hold up a GPU.
        self.scheduler.alphas_cumprod = self.scheduler.alphas_cumprod.to(timesteps.device)
        alpha_bar = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1).float()
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def check_finite(self, values: torch.Tensor, what: str) -> None:
        """InputError where what was computed is no number: the UNet's precision may be too low."""
        if not bool(torch.isfinite(values).all()):
            precision = str(self.dtype).removeprefix("torch.")
            raise InputError(
                f"Every value of {what} should be finite, but with the UNet in {precision} some "
                "are not; run it again with --precision bfloat16, whose range is that of float32, "
                "or look whether the model's weights are sound."
            )

    def save(self, folder: Path) -> None:
        """Write all parts as a diffusers folder that `StableDiffusionPipeline` loads."""
        index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
        for module in (self.unet, self.vae):
            # diffusers would write the folder it loaded from, and the digest would depend on it.
            module.register_to_config(_name_or_path="")
        # How the last prompts were cut and padded is written too, though each call says it anew.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()
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


def pixel_values(pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """What the VAE takes, float32 [n, 3, H, W] in [-1, 1], of images uint8 [n, H, W, 3].

    Contiguous: `permute` alone leaves the channels last in memory, and with those the CPU's
    GroupNorm is up to 60 times less accurate (1e-4 against 2e-6 relative to float64, measured).
    """
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def load_pipeline(
    model: ModelSource | str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """Load the pipeline that `model` names; a string is its name alone.

    `dtype` is the UNet's, which does all but a hundredth of the work. The VAE and the text encoder
    stay in float32, whatever it is: they run once per image and label, their rounding would be
    one and the same error in every draw, and some VAEs overflow in float16.

    Raises `InputError` if there is no such model, it cannot be had, or it is no Stable Diffusion
    pipeline.
    """
    files = find_model(model)
    with quiet_libraries():
        tokenizer = _loaded(files, "tokenizer", CLIPTokenizer)
        scheduler = load_scheduler(files)
        vae = _loaded_weights(files, "vae", AutoencoderKL, torch.float32)
        text_encoder = _loaded_weights(files, "text_encoder", CLIPTextModel, torch.float32)
        # A LoRA is added before the precision is lowered, which would lose the half of it.
        unet_dtype = torch.float32 if files.lora else dtype
        unet = _loaded_weights(files, "unet", UNet2DConditionModel, unet_dtype)
        if files.lora:
            from diffmining_core.models.lora import merge_lora_file  # brings peft along

            merge_lora_file(unet, files.lora, files.lora_name)
            unet.to(dtype)
        return Pipeline(
            unet=unet.to(device),
            vae=vae.to(device),
            text_encoder=text_encoder.to(device),
            tokenizer=tokenizer,
            scheduler=scheduler,
            digest=model_digest(files),
        )


def load_scheduler(files: ModelFiles) -> DDPMScheduler:
    """The noise schedule of a model, whichever sampler's settings it was saved with.

    Never clips samples to [-1, 1], which is wrong for latents; diffusers' StableDiffusionPipeline
    overrides that setting too.
    """
    scheduler: DDPMScheduler = _loaded(files, "scheduler", DDPMScheduler, clip_sample=False)
    return scheduler


def _loaded_weights(files: ModelFiles, component: str, loader: Any, dtype: torch.dtype) -> Any:
    """A component with all its weights from its files; none of them is left as it was drawn."""
    precision = "dtype" if loader is CLIPTextModel else "torch_dtype"
    found, info = _loaded(
        files,
        component,
        loader,
        use_safetensors=True,
        variant=files.variant(component),
        output_loading_info=True,
        **{precision: dtype},
    )
    # Not those that are there beside them: a whole CLIP model has its vision tower too.
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        raise InputError(
            f"The {component} of model {files.source} lacks {len(lost)} of the weights that its "
            f"configuration asks for, {lost[0]} the first; fetch or save it again."
        )
    return found


def _loaded(files: ModelFiles, component: str, loader: Any, **options: Any) -> Any:
    try:
        return loader.from_pretrained(files.folders[component], **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"The {component} of model {files.source} cannot be loaded as {loader.__name__} with "
            f"safetensors weights ({first_line(error)}); give a Stable Diffusion pipeline "
            "saved by diffusers with safe_serialization=True."
        ) from error
