"""COCO JSON: the patches of the clusters as boxes in their original images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import IO, Any

from diffmining_core.images.pixels import original_square
from diffmining_core.results.exports.mined_images import MinedImages
from diffmining_core.results.exports.target import file_of
from diffmining_core.results.opened import MinedResults
from diffmining_core.store.roots import Root

NAME = "annotations.json"


def export_coco(
    results: MinedResults,
    images: MinedImages,
    target: Root,
    on_image: Callable[[], object] = lambda: None,
) -> None:
    """Write `annotations.json`; the images stay where they are.

    A category is a cluster of a label (its `supercategory`), a box is in pixels of the upright
    original, `score` is its typicality, `file_name` the address of its image.
    """
    categories = list(_categories(results))
    number_of = {(one["supercategory"], one["cluster"]): one["id"] for one in categories}
    annotations: list[dict[str, Any]] = []
    with file_of(target, NAME) as path, path.open("w", encoding="utf-8") as file:
        info = {"description": results.title, "contributor": "diffmining"}
        file.write(f'{{"info": {json.dumps(info)},\n"licenses": [],\n')
        _write_list(file, "categories", categories)
        file.write(",\n")
        _write_list(file, "images", _images(results, images, number_of, annotations, on_image))
        file.write(",\n")
        _write_list(file, "annotations", annotations)
        file.write("}\n")


def _categories(results: MinedResults) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(results.cluster_summary().to_pylist(), 1):
        yield {
            "id": number,
            "name": f"{row['label']}, cluster {row['cluster'] + 1}",
            "supercategory": row["label"],
            "cluster": row["cluster"],
            "members": row["members"],
            "median_typicality": row["median_typicality"],
        }


def _images(
    results: MinedResults,
    images: MinedImages,
    number_of: dict[tuple[str, int], int],
    annotations: list[dict[str, Any]],
    on_image: Callable[[], object],
) -> Iterator[dict[str, Any]]:
    """An entry for each image; its boxes go to `annotations`, of which there are few per label."""
    for number, image in enumerate(images, 1):
        yield {
            "id": number,
            "file_name": image.uri,
            "width": image.width,
            "height": image.height,
            "sha256_start": image.image_id,
        }
        for patch in image.patches:
            if patch["cluster"] is None:
                continue
            place = patch["y"], patch["x"], patch["size"]
            box = original_square(*place, image.width, image.height, results.size)
            left, top, width, height = (round(side, 3) for side in box)
            right, bottom = left + width, top + height
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": number_of[patch["label"], patch["cluster"]],
                    "bbox": [left, top, width, height],
                    "area": width * height,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "iscrowd": 0,
                    "score": patch["typicality"],
                    "rank": patch["label_rank"],
                    "distance": patch["distance"],
                }
            )
        on_image()


def _write_list(file: IO[str], name: str, entries: Iterator[Any] | list[Any]) -> None:
    file.write(f"{json.dumps(name)}: [")
    for place, entry in enumerate(entries):
        file.write(f"{',' if place else ''}\n{json.dumps(entry, allow_nan=False)}")
    file.write("\n]")
