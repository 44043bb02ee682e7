"""Finetune the base model's UNet on the dataset; checkpointed, so that a killed run goes on."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmining_core import models
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shards import ShardImage
from diffmining_core.models.files import model_digest
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.ledger import Attempt, Manifest, finished, read_json, read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.index import Shard, good_images
from tasks.models import Device, ModelReference
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "finetune"
LOSSES = "losses.json"
STEPS_BETWEEN_CHECKPOINTS = 200


class ShardImages:
    """The good images of many shards by index; a few shards' tables in memory at a time."""

    def __init__(self, root: str, dataset: Sequence[Shard], size: int) -> None:
        self.size = size
        self.ends = list(accumulate(shard.images for shard in dataset))
        opened = open_root(root)
        self._images = lru_cache(maxsize=64)(lambda place: good_images(opened, dataset[place]))

    def __len__(self) -> int:
        return self.ends[-1]

    def load(self, index: int) -> tuple[npt.NDArray[np.uint8], str]:
        """The model-size image uint8 [h, w, 3] and its label."""
        place = bisect_right(self.ends, index)
        images: list[ShardImage] = self._images(place)
        image = images[index - self.ends[place]]
        return load_pixels(image.uri, self.size), image.label


def finetune_unit(dataset: Sequence[Shard], base: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of one base model, choice of shards and options (`FinetuneOptions` and prompts)."""
    content = sorted(shard.content_id for shard in dataset)
    return Unit(STAGE, models.ALGO, (base.digest, *content), options)


@stage_task(STAGE)
def finetune(
    root: str,
    dataset: Sequence[Shard],
    base: ModelReference,
    options: dict[str, Any],
    device: Device,
) -> Done:
    """Train and publish a complete diffusers folder with its losses and a card."""
    unit = finetune_unit(dataset, base, options)

    def produce(attempt: Attempt) -> None:
        import torch

        from diffmining_core.models.card import model_card
        from diffmining_core.models.finetune import FinetuneOptions, merge_lora
        from diffmining_core.models.finetune import finetune as train
        from diffmining_core.models.pipelines import load_pipeline

        # Weights stay in float32 while they are trained; autocast lowers the arithmetic.
        pipeline = load_pipeline(base.name, device.name, torch.float32)
        train_options = FinetuneOptions(
            **{k: v for k, v in options.items() if k not in ("prompt", "null_prompt")}
        )
        images = ShardImages(root, dataset, train_options.size)
        checkpoints = RootCheckpoints(
            open_root(root), f"{STAGE}/{unit.key}/checkpoints", STEPS_BETWEEN_CHECKPOINTS
        )
        with Progress("finetune", train_options.steps, "steps") as progress:

            def on_step(step: int, loss: float) -> None:
                if progress.bar.n < step:
                    progress.start_at(step)  # gone on from a checkpoint
                progress.advance(1, f"loss {loss:.4f}")

            losses = train(
                pipeline,
                images,
                PromptTemplate(options["prompt"], options["null_prompt"]),
                train_options,
                checkpoints,
                on_step,
            )
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            if train_options.lora_rank:
                merge_lora(pipeline, folder)
            pipeline.save(folder)
            (folder / "README.md").write_text(
                model_card(base.name, options, dataset_counts(dataset), losses)
            )
            attempt.facts["digest"] = model_digest(folder)
            attempt.write_folder(folder, "model")
        attempt.write_json(LOSSES, [round(float(loss), 6) for loss in losses])
        attempt.facts["labels"] = sorted(dataset_counts(dataset))
        attempt.counts["images"] = len(images)
        attempt.counts["unet_forwards"] = pipeline.unet_forwards
        checkpoints.remove()

    return fill(root, unit, produce, device.name)


def dataset_counts(dataset: Sequence[Shard]) -> dict[str, int]:
    """Good images per label over all shards."""
    counts: dict[str, int] = {}
    for shard in dataset:
        for label, count in shard.labels:
            counts[label] = counts.get(label, 0) + count
    return counts


def finetuned_before(
    root: str, dataset: Sequence[Shard], base: ModelReference, options: dict[str, Any]
) -> Manifest | None:
    """The model finetuned at this root with these options on the most of these very shards.

    A dataset that has grown keeps the model it has; None if there is none to keep.
    """
    content = {shard.content_id for shard in dataset}
    candidates = [
        manifest
        for manifest in read_manifests(open_root(root), STAGE)
        if manifest.algo == models.ALGO
        and manifest.parameters == options
        and manifest.inputs[0] == base.digest
        and content.issuperset(manifest.inputs[1:])
    ]
    return max(candidates, key=lambda manifest: (len(manifest.inputs), manifest.key), default=None)


def finetuned_model(root: str, base: ModelReference, key: str) -> ModelReference:
    """The reference of a published finetuned model."""
    manifest = finished(open_root(root), STAGE, key)
    return ModelReference(base.name, manifest.facts["digest"], key)


def shards_trained_on(root: str, model: ModelReference, dataset: Sequence[Shard]) -> list[Shard]:
    """The shards that a finetuned model has seen; none for a base model."""
    if model.finetuned is None:
        return []
    manifest = finished(open_root(root), STAGE, model.finetuned)
    return [shard for shard in dataset if shard.content_id in manifest.inputs[1:]]


def loss_curve(root: str, key: str) -> list[tuple[int, float]]:
    """(step, loss) of a published finetuning."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    return list(enumerate(read_json(opened, manifest, LOSSES)))
