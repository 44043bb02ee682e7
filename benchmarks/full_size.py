"""Stable Diffusion 1.5 at full size with random weights: does it run, how long, in how much memory?

    python -m benchmarks.full_size            # all, a process after the other: 20 minutes
    python -m benchmarks.full_size quick      # the same at 128 px: 2 minutes
    python -m benchmarks.full_size counts     # numbers of parameters against the published ones

The architecture is built from its configuration, so that shapes, memory and precision are those of
the real model; what it says of an image is not, for its weights are drawn. The tiny pipeline's
byte-level tokenizer stands for CLIP's.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffmining_core.features.dift import NOISES, image_features
from diffmining_core.finetuning.images import Described, TrainingImage
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.training import Kept, Work, train
from diffmining_core.models.files import TINY, ModelSource, find_model
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.draws import draw
from diffmining_core.typicality.estimator import typicality

PUBLISHED = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
PUBLISHED_2 = {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}
SIZES = {"all": [(256, 256), (512, 752)], "quick": [(128, 192)]}
"""Height and width of the images; those of 512 × 752 px are 64 × 94 latents."""
DRAWS = 2
PROMPTS = PromptTemplate()

Array = npt.NDArray[np.float32]


def unet(**changes: Any) -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.x; `changes` to its configuration make another's."""
    settings = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
    return UNet2DConditionModel(**{**settings, **changes})


def vae() -> AutoencoderKL:
    """The autoencoder of Stable Diffusion 1.x and 2.x."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )


def text_encoder(**changes: Any) -> CLIPTextModel:
    """The text tower of CLIP ViT-L/14; `changes` to its configuration make another's."""
    settings = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
    }
    return CLIPTextModel(CLIPTextConfig(**{**settings, **changes}))


def full_size(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Pipeline:
    """Stable Diffusion 1.5, drawn from one seed; the UNet alone in `dtype`, as `load_pipeline`."""
    torch.manual_seed(0)
    diffusers.utils.logging.set_verbosity_error()  # it warns of every change of precision
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )
    return Pipeline(
        unet().to(device, dtype),
        vae().to(device),
        text_encoder().to(device),
        CLIPTokenizer.from_pretrained(find_model(ModelSource(TINY)).folders["tokenizer"]),
        scheduler,
        digest="",
    )


def counts() -> dict[str, dict[str, int]]:
    """Numbers of parameters of Stable Diffusion 1.5 and 2.1, built without memory for them."""
    with torch.device("meta"):
        heads = {"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
        wide = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23}
        models = {
            "1.5": {"unet": unet(), "vae": vae(), "text_encoder": text_encoder()},
            "2.1": {
                "unet": unet(cross_attention_dim=1024, **heads),
                "vae": vae(),
                "text_encoder": text_encoder(**wide, num_attention_heads=16, hidden_act="gelu"),
            },
        }
    return {
        version: {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        for version, parts in models.items()
    }


@dataclass
class Measurements:
    """What one process measured: rows (what, result, seconds, peak GB), and scores of patches."""

    of_what: str
    rows: list[tuple[str, str, float, float]] = field(default_factory=list)
    scores: dict[str, Array] = field(default_factory=dict)

    def of(self, what: str, run: Callable[[], Any], shape: Callable[[Any], str]) -> Any:
        """Run it, and note its seconds and the most memory that the process then held."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
        started = time.perf_counter()
        result = run()
        seconds = time.perf_counter() - started
        self.rows.append((what, shape(result), seconds, peak_gb()))
        print(f"  {self.of_what}: {what}: {seconds:.1f} s, {peak_gb():.1f} GB", flush=True)
        return result


def peak_gb() -> float:
    """The most memory the process held since the peak was last set back."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x)
    return int(line.split()[1]) * 1024 / 1e9


def measure_mining(precision: str, sizes: Sequence[tuple[int, int]], threads: int) -> Measurements:
    """Typicality and DIFT under a UNet in this precision."""
    # Not wanted by those who take the architecture alone to a machine without Arrow.
    from diffmining_core.patches.scoring import patch_scores
    from diffmining_core.typicality.draws import sampled_latents

    torch.set_num_threads(threads)
    measured = Measurements(f"UNet in {precision}")
    pipeline = full_size(dtype=getattr(torch, precision))
    embeds = pipeline.embed_prompts([PROMPTS.null, PROMPTS.of("France")])
    for hw in sizes:
        px = f"{hw[0]} × {hw[1]} px"
        latents = measured.of(
            f"VAE encoder, {px}",
            partial(sampled_latents, pipeline, picture(hw)[None], ["a"], 42),
            lambda latents: f"latents {tuple(latents.shape[1:])}",
        )
        draws = draw(42, (4, hw[0] // 8, hw[1] // 8), DRAWS, (0.1, 0.7))
        estimate = measured.of(
            f"typicality, {px}, {DRAWS} draws",
            partial(
                typicality, pipeline, latents, embeds[1:], torch.tensor([0]), embeds[:1], draws
            ),
            lambda estimate: f"map {tuple(estimate.mean.shape[1:])}",
        )
        patch_size = 64 if min(hw) >= 512 else 50
        measured.scores[px] = patch_scores(estimate.mean[0].numpy(), hw, patch_size)
    measured.of(
        f"DIFT, {px}, {NOISES} noises",
        partial(image_features, pipeline, picture(hw), embeds[1], [(0, 0)], 64, 42, "a"),
        lambda features: f"features {features.shape}",
    )
    return measured


def measure_finetuning(everything: bool, threads: int) -> Measurements:
    """Whole steps of a LoRA and of all weights."""
    torch.set_num_threads(threads)
    measured = Measurements("finetuning, weights in float32")
    pipeline = full_size()
    steps = [(16, 128, "float32", False)]
    if everything:
        steps = [
            (16, 256, "float32", False),
            (16, 512, "bfloat16", False),
            (0, 256, "float32", False),
            (0, 256, "float32", True),
            (0, 512, "bfloat16", True),
        ]
    for rank, side, precision, checkpointing in steps:
        measured.of(
            f"step of {f'a LoRA of rank {rank}' if rank else 'all weights'}, 1 image of {side} px, "
            f"{precision} arithmetic{', checkpointing' if checkpointing else ''}",
            partial(finetuning_step, pipeline, rank, side, precision, checkpointing),
            "loss {:.2f}".format,
        )
    return measured


def finetuning_step(
    pipeline: Pipeline, rank: int, side: int, precision: Any, checkpointing: bool
) -> float:
    """The loss of one whole finetuning step; a LoRA is then taken off."""
    options = FinetuneOptions(steps=1, batch_size=1, lora_rank=rank, size=side)
    nowhere = RootCheckpoints(open_root("memory://full-size"), f"{rank}-{side}")
    running = FinetuneRunning(precision=precision, gradient_checkpointing=checkpointing)
    with TemporaryDirectory() as scratch:
        images = OneImage(picture((side, side)))
        trained = train(
            Work(
                pipeline,
                images,
                PROMPTS,
                ["France"],
                options,
                running,
                Kept(nowhere, nowhere, nowhere),
                Path(scratch),
            )
        )
    if rank:
        pipeline.unet.unload_lora()
    return float(trained.history.losses[0])


class OneImage:
    """A dataset of one image."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return 1

    def describe(self, index: int) -> Described:
        """The one that there is."""
        return Described("a", ("France",))

    def load(self, index: int) -> TrainingImage:
        """The one that there is."""
        return TrainingImage(self.pixels, ("France",), None, "a")


def picture(hw: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """A smooth random picture uint8 [h, w, 3]."""
    coarse = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, hw, mode="bicubic").clamp(0, 1)
    return np.ascontiguousarray((smooth[0].permute(1, 2, 0) * 255).byte().numpy())


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's, of two arrays of scores."""
    ranks = np.stack([scores.ravel().argsort().argsort() for scores in (one, other)])
    return float(np.corrcoef(ranks.astype(float))[0, 1])


def top_overlap(one: Array, other: Array, count: int = 1000) -> float:
    """Share of the highest scores that are the highest in both."""
    highest = [set(scores.ravel().argsort()[-count:].tolist()) for scores in (one, other)]
    return len(highest[0] & highest[1]) / count


def print_table(measured: Measurements) -> None:
    """The rows of one process."""
    print(f"\n| {measured.of_what} | result | seconds | peak GB |\n|---|---|---|---|")
    for what, shape, seconds, peak in measured.rows:
        print(f"| {what} | {shape} | {seconds:.1f} | {peak:.1f} |")


def print_counts() -> None:
    """Numbers of parameters beside the published ones."""
    print("| | UNet | VAE | text encoder |\n|---|---|---|---|")
    published = {"1.5": PUBLISHED, "2.1": PUBLISHED_2}
    for version, found in counts().items():
        cells = " | ".join(
            f"{count:,}" + ("" if count == published[version][name] else " (differs)")
            for name, count in found.items()
        )
        print(f"| {version} | {cells} |")


def main() -> None:
    """Measure in a process each, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["all", "quick", "counts"], default="all", nargs="?")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print_counts()
    if arguments.what == "counts":
        return
    sizes, everything = SIZES[arguments.what], arguments.what == "all"
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as one_at_a_time:
        found = [
            one_at_a_time.submit(measure_mining, precision, sizes, arguments.threads).result()
            for precision in ("float32", "bfloat16")
        ]
        finetuning = one_at_a_time.submit(measure_finetuning, everything, arguments.threads)
        found.append(finetuning.result())
    for measured in found:
        print_table(measured)
    print("\n| patch scores in bfloat16 against float32 | rank correlation | of the top 1000 |")
    print("|---|---|---|")
    for name, scores in found[0].scores.items():
        other = found[1].scores[name]
        print(
            f"| {name} | {rank_correlation(scores, other):.4f} | {top_overlap(scores, other):.1%} |"
        )


if __name__ == "__main__":
    main()
