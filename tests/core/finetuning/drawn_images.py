"""Images in memory to finetune on, and a training of them in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
import torch

from diffmining_core.finetuning.images import Described, TrainingImage
from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.training import Kept, Trained, Work, train
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root

SQUARE = [(64, 64), (64, 64)]
MIXED = [(64, 64), (64, 96), (80, 64)]
RUNNING = FinetuneRunning(checkpoint_every=1000)


class Drawn:
    """Images of the given (h, w), labelled a, b, c … or as said; counts what is loaded."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        labels: Sequence[str | tuple[str, ...]] = "abcdefghijklmnopqrstuvwxyz",
        details: Sequence[str | None] = (),
        unusable: Sequence[int] = (),
    ) -> None:
        rng = np.random.default_rng(0)
        self.images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        self.labels = [(one,) if isinstance(one, str) else one for one in labels]
        self.details = details
        self.unusable = unusable
        self.loads: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self.images)

    def describe(self, index: int) -> Described:
        detail = self.details[index] if self.details else None
        return Described(f"id {index}", self.labels[index], detail)

    def load(self, index: int) -> TrainingImage | None:
        self.loads[index] += 1
        if index in self.unusable:
            return None
        described = self.describe(index)
        return TrainingImage(
            self.images[index], described.labels, described.detail, described.image_id
        )


def kept(checkpoints: int | None = 1) -> Kept:
    root = open_root(f"memory://{uuid4().hex}")
    return Kept(
        RootCheckpoints(root, "checkpoints", checkpoints),
        RootCheckpoints(root, "checkpoints/snapshots", None),
        RootCheckpoints(root, "checkpoints/previews", None),
    )


def trained(
    pipeline: Pipeline,
    images: Drawn,
    options: FinetuneOptions,
    running: FinetuneRunning = RUNNING,
    keeping: Kept | None = None,
    listener: Listener | None = None,
    prompts: PromptTemplate | None = None,
) -> Trained:
    """Train the pipeline's UNet in place."""
    with TemporaryDirectory() as scratch:
        work = Work(
            pipeline=pipeline,
            images=images,
            prompts=prompts or PromptTemplate(),
            labels=sorted({label for labels in images.labels for label in labels}),
            options=options,
            running=running,
            kept=keeping or kept(),
            scratch=Path(scratch),
        )
        return train(work, [listener] if listener else [])


def weights(module: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The greatest difference of any weight."""
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def output(unet: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    latents, embeds = (torch.randn(s, generator=generator) for s in ((2, 4, 8, 8), (2, 77, 64)))
    with torch.no_grad():
        prediction: torch.Tensor = unet(
            latents, torch.tensor([100, 600]), encoder_hidden_states=embeds
        ).sample
    return prediction
