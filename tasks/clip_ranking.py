"""CLIP ranking of one dataset shard, and CLIP's features of the patches that it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from diffmining_core.baselines.clip_files import ALGO, find_clip
from diffmining_core.baselines.embedding import with_features
from diffmining_core.baselines.reading import labelled_pixels
from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import features, selection
from tasks.index import good_images
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

if TYPE_CHECKING:
    from diffmining_core.baselines.clip_ranking import Clip

STAGE = "clip"


@dataclass(frozen=True)
class ClipReference:
    """A CLIP model by the name that the user gave it; the digest of its files enters every key."""

    name: str
    digest: str


def clip_reference(name: str) -> ClipReference:
    """The reference of a CLIP model; InputError if there is none of this name."""
    return ClipReference(name, find_clip(name).digest)


def clip_unit(shard: Shard, clip: ClipReference, options: dict[str, Any]) -> Unit:
    """The unit of one shard's maps; `options` are the prompts, size and cell."""
    return Unit(STAGE, ALGO, (shard.content_id, clip.digest), options)


@stage_task(STAGE, "clip {shard.name}")
def clip(
    root: str, shard: Shard, model: ClipReference, options: dict[str, Any], device: str
) -> Done:
    """Compute and publish the maps of one shard."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.baselines.clip_ranking import clip_map

        loaded = _loaded(model, device)
        embed = _prompts(loaded)
        template = PromptTemplate.from_options(options)
        images = good_images(open_root(root), shard)
        maps, pairs = [], []
        with Progress(f"clip {shard.name}", shard.images, "images") as progress:
            for image in labelled_pixels(images, options["size"]):
                tokens, hw = loaded.image_tokens(image.pixels), image.pixels.shape[:2]
                for label in image.labels:
                    prompts = embed(template.of(label)), embed(template.null)
                    maps.append(clip_map(tokens, *prompts, hw, options["cell"]))
                    pairs.append((image.image_id, label))
                progress.advance()
        write_baseline_maps(attempt, maps, pairs)

    return fill(root, clip_unit(shard, model, options), produce, device)


def clip_features_unit(
    label: str, digest: str, model: ClipReference, options: dict[str, Any]
) -> Unit:
    """The unit of one label's highest patches, among those of `tasks.features`."""
    parameters = {"label": label, "size": options["size"]}
    return Unit(features.STAGE, ALGO, (digest, model.digest), parameters)


@stage_task(features.STAGE, "features {label}, CLIP")
def clip_features(
    root: str,
    label: str,
    digest: str,
    selection_key: str,
    model: ClipReference,
    options: dict[str, Any],
    device: str,
) -> Done:
    """Embed the highest patches of one label by the mean token in each."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.baselines.clip_ranking import clip_features as of_patches

        loaded = _loaded(model, device)
        opened = open_root(root)
        rows = selection.of_label(selection.selected(opened, selection_key), label, "highest")
        table = with_features(
            rows,
            options["size"],
            lambda pixels, corners, side: of_patches(
                loaded.image_tokens(pixels), corners, side, (pixels.shape[0], pixels.shape[1])
            ),
        )
        attempt.write_table(features.TABLE, table)
        attempt.counts["patches"] = table.num_rows

    return fill(root, clip_features_unit(label, digest, model, options), produce, device)


def write_baseline_maps(
    attempt: Attempt,
    maps: list[np.ndarray[Any, np.dtype[np.float32]]],
    pairs: list[tuple[str, str]],
) -> None:
    """Store maps by (image_id, label) like those of typicality; they are not means of draws."""
    ids, labels = zip(*pairs, strict=True) if pairs else ((), ())
    spread = [np.zeros_like(one) for one in maps]
    write_maps(attempt, RaggedMaps.pack(maps, spread, [0.0] * len(maps), ids, labels, 1))
    attempt.counts["pairs"] = len(maps)
    attempt.counts["images"] = len(set(ids))


@lru_cache(maxsize=1)
def _loaded(model: ClipReference, device: str) -> Clip:
    """The model, loaded once per process."""
    from diffmining_core.baselines.clip_ranking import load_clip

    files = find_clip(model.name)
    if (here := files.digest) != model.digest:
        raise InputError(
            f"The CLIP model {model.name} should have the digest {model.digest[:12]}, as where "
            f"this run was planned, but has {here[:12]}; name a revision (ID@REVISION) or a folder "
            "that stays as it is."
        )
    return load_clip(files, device)


def _prompts(model: Clip) -> Callable[[str], Any]:
    """Embeds each prompt once."""
    return lru_cache(maxsize=1024)(model.embed_prompt)
