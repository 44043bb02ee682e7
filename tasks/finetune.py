"""Finetune the base model's UNet on the dataset; checkpointed, so that a killed run goes on."""

from __future__ import annotations

import logging
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
from diffmining_core.errors import ImageError, InputError
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

logger = logging.getLogger(__name__)


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
        """The model-size image uint8 [h, w, 3] and its label.

        In place of one that nobody had opened before and that cannot be used comes the next; it is
        set aside by name where its typicality would be measured.
        """
        for other in range(index, index + len(self)):
            image = self._image(other % len(self))
            try:
                return load_pixels(image.uri, self.size, image.image_id), image.label
            except ImageError as error:
                if not image.declared:
                    raise
                logger.warning("finetuning goes on without an image: %s", error)
        raise InputError(f"none of the {len(self)} images can be used; see the log for the reasons")

    def _image(self, index: int) -> ShardImage:
        place = bisect_right(self.ends, index)
        return self._images(place)[index - self.ends[place]]


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
    """The model finetuned at this root with these options on the most of these shards.

    A dataset that has grown, shrunk or been corrected keeps the model it has; None if no model has
    seen any of it.
    """
    candidates = [
        (len(trained_on(manifest, dataset)), manifest)
        for manifest in read_manifests(open_root(root), STAGE)
        if manifest.algo == models.ALGO
        and manifest.parameters == options
        and manifest.inputs[0] == base.digest
    ]
    # Of two that have seen as much of it, the one that has seen less beside it.
    seen, best = max(
        candidates,
        key=lambda pair: (pair[0], -len(pair[1].inputs), pair[1].key),
        default=(0, None),
    )
    return best if seen else None


def trained_on(manifest: Manifest, dataset: Sequence[Shard]) -> list[Shard]:
    """The shards whose images a finetuned model has seen, even if some of them are gone since."""
    seen = set(manifest.inputs[1:])
    return [shard for shard in dataset if {shard.content_id, shard.indexed_id} & seen]


def finetuned_model(root: str, base: ModelReference, key: str) -> ModelReference:
    """The reference of a published finetuned model."""
    manifest = finished(open_root(root), STAGE, key)
    return ModelReference(base.name, manifest.facts["digest"], key)


def shards_trained_on(root: str, model: ModelReference, dataset: Sequence[Shard]) -> list[Shard]:
    """The shards that a finetuned model has seen; none for a base model."""
    if model.finetuned is None:
        return []
    return trained_on(finished(open_root(root), STAGE, model.finetuned), dataset)


def loss_curve(root: str, key: str) -> list[tuple[int, float]]:
    """(step, loss) of a published finetuning."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    return list(enumerate(read_json(opened, manifest, LOSSES)))
