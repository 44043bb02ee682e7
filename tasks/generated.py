"""Images that a model generates of a label, as a dataset shard that can be mined like any other."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images import shards
from diffmining_core.images.shards import FoundImage
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.index import TABLE
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = "generated"
ALGO = "generated-1"
"""Version of what decides a generated image."""


def generated_unit(model: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of a label's images; `options` are prompts, label, guidance, steps and the like."""
    return Unit(STAGE, f"{ALGO} {shards.ALGO}", (model.digest,), options)


@stage_task(STAGE, "generated {options[label]}, guidance {options[guidance]}")
def generate(root: str, model: ModelReference, options: dict[str, Any], device: Device) -> Done:
    """Generate and publish the images of one label, with the table of their shard."""
    unit = generated_unit(model, options)

    def produce(attempt: Attempt) -> None:
        from diffmining_core.models.generation import generated_images
        from diffmining_core.models.prompts import PromptTemplate

        opened = open_root(root)
        label, count = options["label"], options["images"]
        pipeline = loaded(root, model, device)
        before = pipeline.unet_forwards
        names, found = [], []
        with Progress(f"generated {label}", count, "images") as progress:
            images = generated_images(
                pipeline,
                PromptTemplate.from_options(options),
                label,
                count,
                options["size"],
                options["guidance"],
                options["steps"],
                options["seed"],
            )
            for number, pixels in enumerate(images):
                names.append(f"images/{number:05d}.png")
                data = _png(pixels)
                attempt.write_bytes(names[-1], data)
                url = opened.url_of(f"{attempt.folder}/{names[-1]}")
                found.append(FoundImage(url, label, fingerprint=f"{len(data)}-generated"))
                progress.advance()
        table = shards.index_shard(found)
        if unusable := [reason for reason in table.column("set_aside").to_pylist() if reason]:
            raise InputError(
                f"images generated of {label} should be ones that can be mined, but "
                f"{len(unusable)} are not: {unusable[0]}; give a larger --size."
            )
        # Relative to this unit, wherever the root may be moved.
        place = table.schema.get_field_index("uri")
        table = table.set_column(place, table.schema.field(place), pa.array(names))
        attempt.write_table(TABLE, table)
        attempt.counts["images"] = count
        attempt.counts["unet_forwards"] = pipeline.unet_forwards - before
        attempt.facts["content_id"] = shards.shard_content_id(table)

    return fill(root, unit, produce, device.name)


def generated_shard(root: str, key: str) -> Shard:
    """A label's generated images as a shard of a dataset of their own."""
    manifest = finished(open_root(root), STAGE, key)
    content_id = manifest.facts["content_id"]
    count = manifest.counts["images"]
    return Shard(
        key=key,
        indexed_id=content_id,
        content_id=content_id,
        dropped=(),
        images=count,
        labels=((manifest.parameters["label"], count),),
        set_aside=0,
        declared=0,
        stage=STAGE,
    )


def _png(pixels: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "png")
    return data.getvalue()
