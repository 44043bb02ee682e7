"""Finetune a pipeline's UNet on labelled images with the standard noise loss (paper, section 3.1).

Comes in: a pipeline, images with labels, options. Goes out: the same pipeline with its UNet
trained, and the loss of every step. Each step's images, crops, noise, timesteps and dropped
labels follow from (seed, step) alone, so a run killed and resumed from a checkpoint ends with the
same weights as one left alone.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
LORA_FILE = "pytorch_lora_weights.safetensors"
LATENT_CACHE_BYTES = 2**30


@dataclass(frozen=True)
class FinetuneOptions:
    """How to finetune; the defaults are the paper's."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per step."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Constant, or warm-up over 5 % of the steps and then half a cosine down to zero."""
    null_share: float = 0.05
    """Share of images whose prompt is replaced by the null prompt."""
    lora_rank: int = 0
    """Rank of a LoRA on the attention projections; 0 trains all weights."""
    size: int = 512
    """Shorter side of the images, and side of the random square crop, in pixels."""
    seed: int = 42

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of one step."""
        if self.schedule == "constant":
            return self.learning_rate
        warm_up = min(1.0, (step + 1) / (0.05 * self.steps))
        return self.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))


class LabelledImages(Protocol):
    """The images to train on, by index."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> tuple[npt.NDArray[np.uint8], str]:
        """The model-size image uint8 [h, w, 3] and its label."""


class Checkpoints(Protocol):
    """Where a run keeps what it needs to go on after a crash."""

    every: int

    def latest(self, into: Path) -> int | None:
        """Fetch the newest complete checkpoint's files and return its step, or None."""

    def keep(self, step: int, folder: Path) -> None:
        """Keep the files of `folder` as the checkpoint after `step` steps."""


def finetune(
    pipeline: Pipeline,
    images: LabelledImages,
    prompts: PromptTemplate,
    options: FinetuneOptions,
    checkpoints: Checkpoints,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> npt.NDArray[np.float32]:
    """Train the UNet in place and return the losses float32 [steps].

    With a LoRA its weights are merged into the UNet at the end; `lora_layers` has them before.
    """
    unet = pipeline.unet
    trained = _trainable(pipeline, options)
    optimizer = torch.optim.AdamW(
        trained.values(), lr=options.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2
    )
    losses = np.zeros(options.steps, np.float32)
    first = _restore(checkpoints, trained, optimizer, losses)
    batches = _Batches(pipeline, images, prompts, options)

    unet.train()
    for step in range(first, options.steps):
        latents, noise, timesteps, embeds = batches.at(step)
        with torch.autocast(pipeline.device.type, torch.bfloat16, pipeline.device.type == "cuda"):
            prediction = pipeline.predict(
                pipeline.add_noise(latents, noise, timesteps), timesteps, embeds
            )
        loss = F.mse_loss(prediction, pipeline.training_target(latents, noise, timesteps))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate_at(step)
        optimizer.step()
        losses[step] = loss.item()
        on_step(step, float(losses[step]))
        done = step + 1
        if done % checkpoints.every == 0 and done < options.steps:
            _keep(checkpoints, done, trained, optimizer, losses)
    unet.requires_grad_(False).eval()
    return losses


def merge_lora(pipeline: Pipeline, folder: Path) -> None:
    """Write the LoRA by itself to `folder` and merge it into the UNet's weights."""
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    layers = get_peft_model_state_dict(pipeline.unet)
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers, weight_name=LORA_FILE, safe_serialization=True
    )
    pipeline.unet.fuse_lora()
    pipeline.unet.unload_lora()


def epoch_indices(seed: int, step: int, batch_size: int, total: int) -> list[int]:
    """Which images step `step` sees: consecutive places in shuffled epochs laid end to end."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        epoch: np.random.default_rng((seed, epoch)).permutation(total)
        for epoch in {place // total for place in places}
    }
    return [int(orders[place // total][place % total]) for place in places]


def _trainable(pipeline: Pipeline, options: FinetuneOptions) -> dict[str, torch.nn.Parameter]:
    unet = pipeline.unet
    if options.lora_rank:
        from peft import LoraConfig

        with torch.random.fork_rng():
            torch.manual_seed(options.seed)  # peft draws the LoRA's first weights globally
            unet.add_adapter(
                LoraConfig(
                    r=options.lora_rank,
                    lora_alpha=options.lora_rank,
                    init_lora_weights="gaussian",
                    target_modules=LORA_TARGETS,
                )
            )
    else:
        unet.requires_grad_(True)
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


class _Batches:
    """What each step trains on, made from (seed, step)."""

    def __init__(
        self,
        pipeline: Pipeline,
        images: LabelledImages,
        prompts: PromptTemplate,
        options: FinetuneOptions,
    ) -> None:
        self.pipeline, self.images, self.options = pipeline, images, options
        self.prompts = prompts
        self.embeds: dict[str, torch.Tensor] = {}
        self.posteriors: dict[int, tuple[torch.Tensor, torch.Tensor, str]] = {}
        self.cached_bytes = 0

    def at(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents, noise, timesteps and prompt embeddings of one step, on the device."""
        options = self.options
        indices = epoch_indices(options.seed, step, options.batch_size, len(self.images))
        generator = seeded(options.seed, "finetune", step)
        posteriors = self._encode(indices, generator)
        means = torch.stack([mean for mean, _, _ in posteriors])
        stds = torch.stack([std for _, std, _ in posteriors])
        sampled = means + stds * torch.randn(means.shape, generator=generator)
        noise = torch.randn(means.shape, generator=generator)
        timesteps = torch.randint(
            self.pipeline.scheduler.config.num_train_timesteps, (len(indices),), generator=generator
        )
        dropped = torch.rand(len(indices), generator=generator) < options.null_share
        prompts = [
            self.prompts.null if null else self.prompts.of(label)
            for null, (_, _, label) in zip(dropped, posteriors, strict=True)
        ]
        device = self.pipeline.device
        return (
            sampled.to(device),
            noise.to(device),
            timesteps.to(device),
            torch.stack([self._embed(prompt) for prompt in prompts]),
        )

    def _embed(self, prompt: str) -> torch.Tensor:
        if prompt not in self.embeds:
            self.embeds[prompt] = self.pipeline.embed_prompts([prompt])[0]
        return self.embeds[prompt]

    def _encode(
        self, indices: Sequence[int], generator: torch.Generator
    ) -> list[tuple[torch.Tensor, torch.Tensor, str]]:
        """Posterior mean and std [channels, size / cell, size / cell] and label of each image.

        Images that need no crop are encoded once and kept, as far as the cache reaches. Each goes
        through the VAE alone: the batch's size would show in the last bits, and a resumed run,
        whose cache is empty, would leave the undisturbed one's path.
        """
        encoded = []
        places = torch.rand(len(indices), 2, generator=generator).tolist()
        for index, place in zip(indices, places, strict=True):
            if index in self.posteriors:
                encoded.append(self.posteriors[index])
                continue
            pixels, label = self.images.load(index)
            crop = random_crop(pixels, self.options.size, place)
            pixel_values = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 127.5 - 1
            mean, std = (part[0].cpu() for part in self.pipeline.encode_posterior(pixel_values))
            encoded.append((mean, std, label))
            if crop.shape == pixels.shape and self.cached_bytes < LATENT_CACHE_BYTES:
                self.posteriors[index] = encoded[-1]
                self.cached_bytes += mean.nbytes + std.nbytes
        return encoded


def random_crop(
    pixels: npt.NDArray[np.uint8], size: int, place: Sequence[float]
) -> npt.NDArray[np.uint8]:
    """The square window of `pixels` [h, w, 3] at `place`, two numbers in [0, 1).

    Its side is `size`, or the image's shorter side where `size` is no multiple of 8.
    """
    side = min(size, *pixels.shape[:2])
    top = int(place[0] * (pixels.shape[0] - side + 1))
    left = int(place[1] * (pixels.shape[1] - side + 1))
    return pixels[top : top + side, left : left + side]


def _keep(
    checkpoints: Checkpoints,
    step: int,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: npt.NDArray[np.float32],
) -> None:
    tensors = {"losses": torch.from_numpy(losses[:step].copy())}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors[f"weight/{name}"] = parameter.detach()
        tensors[f"exp_avg/{name}"] = state["exp_avg"]
        tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {name: t.contiguous() for name, t in tensors.items()},
            Path(folder) / "checkpoint.safetensors",
        )
        checkpoints.keep(step, Path(folder))


def _restore(
    checkpoints: Checkpoints,
    trained: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    losses: npt.NDArray[np.float32],
) -> int:
    """Load the newest checkpoint, if there is one, and return the step to go on with."""
    with tempfile.TemporaryDirectory() as folder:
        step = checkpoints.latest(Path(folder))
        if step is None:
            return 0
        tensors = load_file(Path(folder) / "checkpoint.safetensors")
    losses[:step] = tensors["losses"].numpy()
    for name, parameter in trained.items():
        parameter.data.copy_(tensors[f"weight/{name}"])
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step)),
            "exp_avg": tensors[f"exp_avg/{name}"].to(parameter),
            "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter),
        }
    return step
