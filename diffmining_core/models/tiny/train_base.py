"""Train the tiny Stable-Diffusion-shaped pipeline that ships beside this script.

    python -m diffmining_core.models.tiny.train_base

It stands to the built-in street scenes as Stable Diffusion stands to photographs: it has seen
street scenes and patterns with plain captions ("A street with a red mailbox."), and has never
read a country's name. About 10 minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from PIL import Image, ImageDraw
from tokenizers.pre_tokenizers import ByteLevel
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffmining_core.images.street_scenes import caption, draw_scene
from diffmining_core.models.pipelines import Pipeline

SIZE = 128
TEXT_WIDTH = 64


def build(seed: int) -> Pipeline:
    """The untrained pipeline: SD 1.x classes and block layout, 8-px latent cells, 4 channels."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(48, 64, 64, 64),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 24, 32, 32),
        layers_per_block=1,
        norm_num_groups=2,
        sample_size=SIZE,
    )
    set_encoder(vae)
    tokenizer = byte_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    return Pipeline(unet, vae, text_encoder, tokenizer, scheduler, digest="")


@torch.no_grad()
def set_encoder(vae: AutoencoderKL) -> None:
    """Set the encoder's weights so that four numbers say of each 8×8 cell what tells most.

    They are lightness, red against green, blue against yellow, and how much lighter the cell is
    above than below. An encoder trained as small as this one on two cores drops colour for edges,
    yet colour is what tells a red mailbox from a blue one. Residual branches are silent; strided
    convolutions average; SiLU is undone by carrying x and -x, as silu(x) - silu(-x) = x.
    """
    encoder = vae.encoder
    for name, parameter in encoder.named_parameters():
        if "norm" not in name:
            parameter.zero_()
    red, green, blue = range(3)
    centre = encoder.conv_in.weight[:, :, 1, 1]
    centre[0] = centre[3] = 1 / 3
    centre[1, red], centre[1, green] = 1, -1
    centre[2, red], centre[2, green], centre[2, blue] = -0.5, -0.5, 1
    carried = torch.eye(8)
    for block in encoder.down_blocks:
        shortcut = block.resnets[0].conv_shortcut
        if shortcut is not None:
            shortcut.weight[:8, :8, 0, 0] = carried
        for sampler in block.downsamplers or []:
            sampler.conv.weight[:8, :8, :2, :2] = carried[:, :, None, None] / 4
    last = encoder.down_blocks[-2].downsamplers[0].conv.weight
    last[3, 3, 1, :2] *= -1
    last[4:8] = 0
    last[4:8, :4] = -last[:4, :4]
    # The last normalisation divides by the spread of 16 channels: large constants keep it the same
    # for every image.
    constants = encoder.mid_block.resnets[-1].conv2.bias
    constants[8:12], constants[12:16] = 3, -3
    encoder.conv_norm_out.weight.fill_(2.2)
    gains = torch.tensor([2.0, 4.0, 4.0, 6.0])
    for channel, gain in enumerate(gains):
        encoder.conv_out.weight[channel, channel, 1, 1] = gain
        encoder.conv_out.weight[channel, channel + 4, 1, 1] = -gain
    vae.quant_conv.weight[:, :, 0, 0] = torch.eye(8)
    vae.quant_conv.bias.zero_()
    vae.quant_conv.bias[4:] = -8  # log variance


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE without merges: 514 tokens that can spell any label."""
    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{character}</w>" for character in alphabet)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def pattern(rng: np.random.Generator) -> Image.Image:
    """Overlapping shapes of all sizes ("dead leaves"), whose statistics resemble photographs."""
    image = Image.new("RGB", (2 * SIZE, 2 * SIZE), tuple(rng.integers(0, 256, 3)))
    draw = ImageDraw.Draw(image)
    base = rng.integers(0, 256, 3)
    spread = rng.uniform(20, 120)
    for _ in range(int(rng.integers(5, 200))):
        radius = 4 * float(rng.pareto(1.5) + 1)
        x, y = rng.uniform(0, 2 * SIZE, 2)
        colour = tuple(int(v) for v in np.clip(base + rng.normal(0, spread, 3), 0, 255))
        box = (x - radius, y - radius, x + radius, y + radius * rng.uniform(0.4, 1.6))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=colour)
    image = image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    light = np.linspace(rng.uniform(0.6, 1), rng.uniform(0.6, 1), SIZE)[:, None, None]
    noise = rng.normal(0, rng.uniform(0, 8), (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(np.asarray(image) * light + noise, 0, 255).astype(np.uint8))


def draw_images(count: int, seed: int, patterns: float) -> tuple[torch.Tensor, list[str]]:
    """Generic images uint8 [count, 3, H, W] and their captions; a share of them are patterns."""
    rng = np.random.default_rng(seed)
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    captions = []
    for i in range(count):
        if rng.random() < patterns:
            images[i] = np.asarray(pattern(rng))
            captions.append("Colourful shapes.")
        else:
            scene = draw_scene(rng, None, SIZE)
            images[i] = np.asarray(scene.image)
            captions.append(caption(scene, rng))
    return torch.from_numpy(images).permute(0, 3, 1, 2), captions


def train_vae(pipeline: Pipeline, images: torch.Tensor, steps: int, seed: int) -> None:
    """Fit the decoder to the encoder that `set_encoder` made, and scale the latents."""
    vae = pipeline.vae
    parameters = [*vae.decoder.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    for step in range(steps):
        index = torch.randint(len(images), (12,), generator=generator)
        pixel_values = images[index].float() / 127.5 - 1
        with torch.no_grad():
            latents = vae.encode(pixel_values).latent_dist.sample(generator)
        loss = F.l1_loss(vae.decode(latents).sample, pixel_values)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report("vae", step, steps, loss.item(), started)
    vae.requires_grad_(False)
    with torch.no_grad():
        latents = vae.encode(images[:256].float() / 127.5 - 1).latent_dist.mean
    vae.register_to_config(scaling_factor=1 / float(latents.std()))


def encode(pipeline: Pipeline, images: torch.Tensor) -> torch.Tensor:
    """Posterior means of all images, scaled."""
    parts = [
        pipeline.encode_posterior(part.float() / 127.5 - 1)[0] for part in torch.split(images, 64)
    ]
    return torch.cat(parts)


def train_unet(
    pipeline: Pipeline, latents: torch.Tensor, captions: list[str], steps: int, seed: int
) -> None:
    """Fit the UNet on captioned images with the noise loss.

    A tenth of the captions is emptied, so that the model also knows the null prompt. The text
    encoder stays as it was drawn: random projections keep any two prompts apart, while one trained
    on so few captions sends all of them to the same place, and then no label can be learnt.
    """
    unet = pipeline.unet
    parameters = [*unet.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.05
    )
    generator = torch.Generator().manual_seed(seed)
    started = time.monotonic()
    for step in range(steps):
        index = torch.randint(len(latents), (32,), generator=generator)
        empty = torch.rand(32, generator=generator) < 0.1
        prompts = ["" if none else captions[i] for i, none in zip(index, empty, strict=True)]
        tokens = pipeline.tokenizer(
            prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        ).input_ids
        clean = latents[index]
        noise = torch.randn(clean.shape, generator=generator)
        timesteps = torch.randint(1000, (32,), generator=generator)
        noisy = pipeline.add_noise(clean, noise, timesteps)
        with torch.no_grad():
            prompt_embeds = pipeline.text_encoder(tokens)[0]
        noise_pred = pipeline.predict_noise(noisy, timesteps, prompt_embeds)
        loss = F.mse_loss(noise_pred, noise)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call] # torch leaves it so
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        report("unet", step, steps, loss.item(), started)
    unet.requires_grad_(False)


def report(name: str, step: int, steps: int, loss: float, started: float) -> None:
    """A line every 50 steps: loss, rate, minutes left."""
    if step % 50 == 49:
        rate = (step + 1) / (time.monotonic() - started)
        minutes = math.ceil((steps - step - 1) / rate / 60)
        print(f"{name} {step + 1}/{steps} loss {loss:.4f} {rate:.2f}/s {minutes} min", flush=True)


def main() -> None:
    """Draw the images, train the decoder, then the UNet, and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--vae-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    pipeline = build(options.seed)
    images, captions = draw_images(options.images, options.seed + 1, patterns=0.25)
    train_vae(pipeline, images, options.vae_steps, options.seed + 2)
    latents = encode(pipeline, images)
    train_unet(pipeline, latents, captions, options.steps, options.seed + 3)
    for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        module.half()  # half the bytes in the repository; loaded as float32
    pipeline.save(options.folder)


if __name__ == "__main__":
    main()
