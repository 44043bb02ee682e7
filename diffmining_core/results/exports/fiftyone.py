"""A FiftyOne dataset on disk (`fiftyone.types.FiftyOneDataset`): images with their patches.

The layout is that of FiftyOne 1.0, which later versions read too: `metadata.json` says which fields
there are, `samples.json` has the values, `data/` the images, `fields/` the heatmaps.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from diffmining_core.errors import ImageError
from diffmining_core.images.addresses import read_bytes
from diffmining_core.images.ahead import in_order
from diffmining_core.images.pixels import content_id, original_square
from diffmining_core.report.source import KINDS
from diffmining_core.results.exports.mined_images import MinedImage, MinedImages
from diffmining_core.results.exports.target import file_of
from diffmining_core.results.opened import MinedResults
from diffmining_core.store.roots import Root

VERSION = "1.0.0"
"""Of FiftyOne, whose layout this is."""

_FIELDS = "fiftyone.core.fields"
_LABELS = "fiftyone.core.labels"


@dataclass(frozen=True)
class ImageFile:
    """An image's bytes as they are where it lies, and what they are."""

    data: bytes
    mime: str
    suffix: str


def export_fiftyone(
    results: MinedResults,
    images: MinedImages,
    target: Root,
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Write the images that have patches, with these as detections, and their maps as heatmaps.

    `fiftyone.Dataset.from_dir(dataset_dir=…, dataset_type=fiftyone.types.FiftyOneDataset)` reads
    the folder. Boxes are shares of the image's width and height. A heatmap shows the typicality of
    the image's first label, from none (0) to that of the label's most typical patch (255).
    """
    scales = _scales(results)
    with file_of(target, "samples.json") as path, path.open("w", encoding="utf-8") as file:
        file.write('{"samples": [')
        for place, (image, stored) in enumerate(in_order(_read, images)):
            name = f"{image.image_id}.{stored.suffix}"
            target.write_new(f"data/{name}", stored.data)
            heat = _heatmap(image, scales)
            target.write_new(f"fields/typicality/{image.image_id}.png", heat)
            sample = _sample(image, stored, name, results.size)
            file.write(f"{',' if place else ''}\n{json.dumps(sample, allow_nan=False)}")
            on_image()
        file.write("\n]}\n")
    target.write_new("metadata.json", json.dumps(_metadata(results)).encode())


def _read(image: MinedImage) -> ImageFile:
    data = read_bytes(image.uri)
    if content_id(data) != image.image_id:
        raise ImageError(
            f"image {image.uri}: its bytes are not those of its image id; it has changed since it "
            "was indexed: put the old one back, or mine it again"
        )
    with Image.open(io.BytesIO(data)) as opened:
        form = opened.format or "PNG"
    return ImageFile(data, Image.MIME.get(form, "application/octet-stream"), form.lower())


def _scales(results: MinedResults) -> dict[str, float]:
    """The typicality of the most typical patch of each label."""
    highest = results.patches(kind="highest").group_by("label").aggregate([("typicality", "max")])
    columns = (highest[name].to_pylist() for name in ("label", "typicality_max"))
    return {label: scale for label, scale in zip(*columns, strict=True) if scale > 0}


def _heatmap(image: MinedImage, scales: dict[str, float]) -> bytes:
    label = image.labels[0]
    shares = np.clip(image.maps[label] / scales.get(label, np.inf), 0, 1)
    data = io.BytesIO()
    Image.fromarray(np.rint(255 * shares).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def _sample(image: MinedImage, stored: ImageFile, name: str, size: int) -> dict[str, Any]:
    classifications = [
        {
            "_id": _object_id(image.image_id, label),
            "_cls": "Classification",
            "tags": [],
            "label": label,
            "typicality": float(image.maps[label].mean(dtype=np.float64)),
        }
        for label in image.labels
    ]
    return {
        "_id": {"$oid": image.image_id[:24]},
        "filepath": f"data/{name}",
        "tags": [],
        "metadata": {
            "_cls": "ImageMetadata",
            "size_bytes": len(stored.data),
            "mime_type": stored.mime,
            "width": image.width,
            "height": image.height,
            "num_channels": 3,
        },
        "_media_type": "image",
        "_rand": int(image.image_id[:12], 16) / 16**12,  # by which FiftyOne shuffles
        "image_id": image.image_id,
        "uri": image.uri,
        "ground_truth": {"_cls": "Classifications", "classifications": classifications},
        **{
            kind: {"_cls": "Detections", "detections": list(_detections(image, kind, size))}
            for kind in KINDS
        },
        "typicality": {
            "_id": _object_id(image.image_id, "typicality map"),
            "_cls": "Heatmap",
            "tags": [],
            "map_path": f"fields/typicality/{image.image_id}.png",
            "range": [0.0, 255.0],
        },
    }


def _detections(image: MinedImage, kind: str, size: int) -> Iterator[dict[str, Any]]:
    for patch in image.patches:
        if patch["kind"] != kind:
            continue
        place = patch["y"], patch["x"], patch["size"]
        left, top, width, height = original_square(*place, image.width, image.height, size)
        across, down = 1 / image.width, 1 / image.height
        yield {
            "_id": _object_id(image.image_id, patch["label"], kind, *map(str, place)),
            "_cls": "Detection",
            "attributes": {},
            "tags": [],
            "label": patch["label"],
            "bounding_box": [left * across, top * down, width * across, height * down],
            "typicality": patch["typicality"],
            "label_rank": patch["label_rank"],
            "cluster": patch["cluster"],
            "distance": patch["distance"],
        }


def _object_id(*parts: str) -> dict[str, str]:
    """A document's id, which MongoDB wants as 24 hex digits; the same in every export."""
    return {"$oid": hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]}


def _metadata(results: MinedResults) -> dict[str, Any]:
    return {
        "name": "diffmining",
        "version": VERSION,
        "media_type": "image",
        "description": results.title,
        "tags": ["diffmining"],
        "info": {"patches": f"squares of images whose shorter side has {results.size} px"},
        "app_config": {
            "grid_media_field": "filepath",
            "media_fields": ["filepath"],
            "modal_media_field": "filepath",
            "plugins": {},
        },
        "classes": dict.fromkeys(KINDS, results.labels),
        "default_classes": results.labels,
        "sample_fields": list(_sample_fields()),
        "frame_fields": [],
    }


def _sample_fields() -> Iterator[dict[str, Any]]:
    for name, kind in (("id", "ObjectId"), ("filepath", "String")):
        yield _field(name, kind)
    yield _field("tags", "List", subfield=f"{_FIELDS}.StringField")
    metadata = [("size_bytes", "Int"), ("mime_type", "String"), ("width", "Int"), ("height", "Int")]
    yield _document(
        "metadata",
        "fiftyone.core.metadata.ImageMetadata",
        [_field(*one) for one in (*metadata, ("num_channels", "Int"))],
    )
    for name, kind in (("_media_type", "String"), ("_rand", "Float"), ("_dataset_id", "ObjectId")):
        yield _field(name, kind)
    for name in ("created_at", "last_modified_at"):
        yield _field(name, "DateTime", read_only=True)
    for name in ("image_id", "uri"):
        yield _field(name, "String")
    yield _labels("ground_truth", "Classification", [_field("typicality", "Float")])
    for kind in KINDS:
        yield _labels(
            kind,
            "Detection",
            [
                _field("bounding_box", "List", subfield=f"{_FIELDS}.FloatField"),
                _field("typicality", "Float"),
                _field("label_rank", "Int"),
                _field("cluster", "Int"),
                _field("distance", "Float"),
            ],
        )
    yield _document(
        "typicality",
        f"{_LABELS}.Heatmap",
        [
            *_label_fields(),
            _field("map", "Array"),
            _field("map_path", "String"),
            _field("range", "HeatmapRange", subfield=f"{_FIELDS}.FloatField"),
        ],
    )


def _labels(name: str, kind: str, own: list[dict[str, Any]]) -> dict[str, Any]:
    """A field that holds a list of classifications or detections."""
    several = f"{kind.lower()}s"
    of_one = [*_label_fields(), _field("label", "String"), *own]
    listed = _field(several, "List", subfield=f"{_FIELDS}.EmbeddedDocumentField")
    listed |= {"embedded_doc_type": f"{_LABELS}.{kind}", "fields": of_one}
    return _document(name, f"{_LABELS}.{kind}s", [listed])


def _label_fields() -> list[dict[str, Any]]:
    return [_field("id", "ObjectId"), _field("tags", "List", subfield=f"{_FIELDS}.StringField")]


def _document(name: str, kind: str, fields: list[dict[str, Any]]) -> dict[str, Any]:
    return _field(name, "EmbeddedDocument") | {"embedded_doc_type": kind, "fields": fields}


def _field(
    name: str, kind: str, *, subfield: str | None = None, read_only: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "ftype": f"{_FIELDS}.{kind}Field",
        "embedded_doc_type": None,
        "subfield": subfield,
        "fields": [],
        "db_field": "_id" if name == "id" else name,
        "description": None,
        "info": None,
        "read_only": read_only,
    }
