"""DIFT features of a label's highest patches; patches embedded before are taken over.

A study may ask for those of another kind of patches, and without the label's prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from diffmining_core.features import ALGO
from diffmining_core.images.pixels import load_pixels
from diffmining_core.patches.scoring import HIGHEST
from diffmining_core.results.references import FEATURES, FEATURES_TABLE
from diffmining_core.store.ledger import Attempt, finished, read_manifests, read_table
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks import selection
from tasks.models import Device, ModelReference, loaded
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

STAGE = FEATURES
TABLE = FEATURES_TABLE
RUN_NAME = "features {label}"
"""Of a task run."""

Vectors = npt.NDArray[np.float32]
Place = tuple[str, int, int]
"""image_id, y and x of a patch."""


def features_unit(label: str, digest: str, model: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of one label's highest patches; `options` are the prompts, size and seed.

    Where they are not as in mining also `kind` of the patches, how many of the `first` ones, and
    whether the prompt is the one without the label (`unlabelled`).
    """
    return Unit(STAGE, ALGO, (digest, model.digest), {"label": label, **options})


@stage_task(STAGE, RUN_NAME)
def features(
    root: str,
    label: str,
    digest: str,
    selection_key: str,
    model: ModelReference,
    options: dict[str, Any],
    device: Device,
) -> Done:
    """Embed the patches of one label, each image once."""
    unit = features_unit(label, digest, model, options)

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        rows = patches_of(selection.selected(opened, selection_key), label, options)
        known = _embedded_before(opened, unit)
        missing: dict[tuple[str, str], list[Place]] = defaultdict(list)
        places = []
        for row in rows.select(["image_id", "uri", "y", "x", "size"]).to_pylist():
            places.append((row["image_id"], row["y"], row["x"]))
            if places[-1] not in known:
                missing[row["image_id"], row["uri"]].append(places[-1])
        if missing:
            patch_size = rows.column("size")[0].as_py()
            forwards = _embed(root, label, missing, patch_size, model, options, device, known)
            attempt.counts["unet_forwards"] = forwards
        vectors = np.stack([known[place] for place in places])
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
        attempt.write_table(TABLE, rows.append_column("feature", column))
        attempt.counts["patches"] = len(places)
        attempt.counts["images"] = len(missing)

    return fill(root, unit, produce, device.name)


def patches_of(selected: pa.Table, label: str, options: dict[str, Any]) -> pa.Table:
    """The patches of a label that are embedded with these options, by rank."""
    rows = selection.of_label(selected, label, options.get("kind", HIGHEST))
    return rows.slice(0, options.get("first"))


def _embed(
    root: str,
    label: str,
    missing: dict[tuple[str, str], list[Place]],
    patch_size: int,
    model: ModelReference,
    options: dict[str, Any],
    device: Device,
    known: dict[Place, Vectors],
) -> int:
    """Add the features of the missing patches to `known`; returns the UNet forwards it took."""
    from diffmining_core.features.dift import image_features
    from diffmining_core.models.lanes import in_lanes
    from diffmining_core.models.prompts import PromptTemplate

    pipeline = loaded(root, model, device)
    before = pipeline.unet_forwards
    prompts = PromptTemplate.from_options(options)
    prompt = prompts.null if options.get("unlabelled") else prompts.of(label)
    prompt_embeds = pipeline.embed_prompts([prompt])[0]

    def read(image: tuple[str, str]) -> Callable[[], Vectors]:
        image_id, uri = image
        return partial(
            image_features,
            pipeline,
            load_pixels(uri, options["size"], image_id),
            prompt_embeds,
            [(y, x) for _, y, x in missing[image]],
            patch_size,
            options["seed"],
            image_id,
        )

    with Progress(f"features {label}", len(missing), "images") as progress:
        found = in_lanes(pipeline.device, missing, read, lambda embed: embed)
        for places, vectors in zip(missing.values(), found, strict=True):
            known.update(zip(places, vectors, strict=True))
            progress.advance()
    return pipeline.unet_forwards - before


def _embedded_before(root: Root, unit: Unit) -> dict[Place, Vectors]:
    """Features that an earlier unit made with the same model and options, by patch.

    A feature depends on its image alone (`dift`), so one taken over equals one made anew.
    """
    known: dict[Place, Vectors] = {}
    for manifest in read_manifests(root, STAGE):
        same = (manifest.algo, manifest.inputs[1], manifest.parameters) == (
            unit.algo,
            unit.inputs[1],
            dict(unit.parameters),
        )
        if same:
            table = read_table(root, manifest, TABLE)
            known.update(zip(_places(table), feature_matrix(table), strict=True))
    return known


def _places(table: pa.Table) -> list[Place]:
    return list(
        zip(*(table.column(name).to_pylist() for name in ("image_id", "y", "x")), strict=True)
    )


def feature_matrix(table: pa.Table, name: str = "feature") -> Vectors:
    """The features of a table, a column of lists of one length, as float32 [n, d]."""
    column = table.column(name).combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False)
    matrix: Vectors = vectors.reshape(len(table), -1)
    return matrix


def label_features(root: Root, key: str) -> pa.Table:
    """The table of a published features unit."""
    manifest = finished(root, STAGE, key)
    return read_table(root, manifest, TABLE)
