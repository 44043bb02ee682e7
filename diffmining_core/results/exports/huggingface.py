"""A Hugging Face dataset: Parquet files with the pixels of every patch, and a card."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from diffmining_core.images.ahead import in_order
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.escaping import markdown_text, printable
from diffmining_core.report.pictures import crop
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.results.exports.mined_images import MinedImage, MinedImages
from diffmining_core.results.exports.target import file_of
from diffmining_core.results.opened import MinedResults, patch_of
from diffmining_core.store.roots import Root

ROWS_PER_GROUP = 500
"""So few that a reader of one row reads about 10 MB."""
GROUPS_PER_FILE = 40

VALUES = {
    "label": "string",
    "kind": "string",
    "label_rank": "int32",
    "typicality": "float32",
    "cluster": "int32",
    "distance": "float32",
    "image_id": "string",
    "uri": "string",
    "y": "int32",
    "x": "int32",
    "size": "int32",
}
"""The columns beside the picture, and their types."""

_FEATURES = {"image": {"_type": "Image"}} | {
    name: {"dtype": kind, "_type": "Value"} for name, kind in VALUES.items()
}
SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((name, pa.type_for_alias(kind)) for name, kind in VALUES.items()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)

_CARD = """\
---
{heading}---

# {title}

Patches that a finetuned diffusion model finds most (`highest`) and least (`lowest`) typical of
their label, and random ones, mined by diffmining. Every row is one patch:

| column | |
|---|---|
| image | the patch's pixels, as the model saw them |
| label | of the image |
| kind | highest, random or lowest |
| label_rank | 0 is the first of its label and kind |
| typicality | mean of the typicality map in the patch |
| cluster | of its label, 0 the most typical; only of the highest |
| distance | of its feature to the cluster's mean |
| image_id | first 32 hex digits of the sha256 of the image's file |
| uri | where the image lay in the dataset |
| y, x, size | the square, in pixels of the image whose shorter side has {size} |

{patches} patches from {images} images, {labels} labels.
"""


def export_huggingface(
    results: MinedResults,
    images: MinedImages,
    target: Root,
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Write `data/train-….parquet` and `README.md`; `datasets.load_dataset(folder)` reads them.

    Patches are PNG; they come image by image, each of which is read once.
    """
    rows = _rows(results, images, on_image)
    files = -(-images.patches.num_rows // (ROWS_PER_GROUP * GROUPS_PER_FILE))
    for number in range(files):
        with (
            file_of(target, f"data/train-{number:05}-of-{files:05}.parquet") as path,
            pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer,
        ):
            for _ in range(GROUPS_PER_FILE):
                if group := list(islice(rows, ROWS_PER_GROUP)):
                    writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
    target.write_new("README.md", _card(results, images).encode())


def _rows(
    results: MinedResults, images: MinedImages, on_image: Callable[[], object]
) -> Iterator[dict[str, Any]]:
    def read(image: MinedImage) -> list[bytes]:
        pixels = load_pixels(image.uri, results.size, image.image_id)
        return [_png(crop(pixels, patch_of(row))) for row in image.patches]

    shown = ShownAddresses.at(results.root)
    for image, pictures in in_order(read, images):
        for row, picture in zip(image.patches, pictures, strict=True):
            name = f"{row['image_id']}-{row['y']}-{row['x']}.png"
            values = {key: row[key] for key in VALUES} | {"uri": shown.address(row["uri"])}
            yield {"image": {"bytes": picture, "path": name}, **values}
        on_image()


def _png(pixels: Any) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG")
    return data.getvalue()


def _card(results: MinedResults, images: MinedImages) -> str:
    heading = {
        "pretty_name": printable(results.title),
        "tags": ["diffmining", "typicality"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
    }
    return _CARD.format(
        heading=yaml.safe_dump(heading, allow_unicode=True, sort_keys=False),
        title=markdown_text(results.title),
        size=results.size,
        patches=images.patches.num_rows,
        images=len(images),
        labels=len(results.labels),
    )
