"""Results against planted truth, where the dataset brings a `truth.parquet`; and other truths."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.errors import InputError
from diffmining_core.evaluation.masks import MaskFolder
from diffmining_core.evaluation.planted import (
    ALGO,
    PixelScores,
    check_truth,
    cluster_purity,
    hits,
    score_pixels,
)
from diffmining_core.images.addresses import read_bytes
from diffmining_core.results.references import Results, Shard
from diffmining_core.store.ledger import Attempt, finished, read_json
from diffmining_core.store.maps import read_maps
from diffmining_core.store.roots import Root, filesystem, open_root
from diffmining_core.store.units import Unit
from tasks import typicality
from tasks.index import good_images
from tasks.progress import Progress
from tasks.results import current_clusters
from tasks.selection import selected
from tasks.units import Done, fill, stage_task

STAGE = "evaluation"
RESULT = "truth.json"

MASKS, PLANTED, BOXES = "masks", "planted", "boxes"
"""Where it is known what is where: a folder of masks, `truth.parquet`, the images' own boxes."""


@dataclass(frozen=True)
class TruthReference:
    """A known answer by its kind and address.

    digest: of what it says; "" of boxes where a digest of the located images stands beside it.
    """

    kind: str
    url: str
    digest: str

    @property
    def source(self) -> str:
        """What a page calls it: the address of masks and planted elements, else `boxes`."""
        return self.kind if self.kind == BOXES else self.url


def find_truth(dataset: str, masks: str | None) -> tuple[str, str] | None:
    """Kind and address of what is known apart from the images: masks, if given, before planted.

    InputError if there are no masks in the folder given.
    """
    if masks is not None:
        MaskFolder(masks).check()
        return MASKS, masks
    url = truth_file(dataset)
    return None if url is None else (PLANTED, url)


def read_truth(kind: str, url: str) -> TruthReference:
    """The truth of a kind, all of it read for its digest."""
    return TruthReference(kind, url, MaskFolder(url).digest if kind == MASKS else truth_digest(url))


def truth_file(dataset: str) -> str | None:
    """The URL of the dataset's planted truth, if it has one."""
    url = f"{dataset.rstrip('/')}/truth.parquet"
    fs, path = filesystem(url)
    return url if fs.exists(path) else None


def truth_digest(url: str) -> str:
    """Sha256 hex of the truth's file."""
    return hashlib.sha256(read_bytes(url)).hexdigest()


def evaluation_unit(results: Results, digest: str, cell: int) -> Unit:
    """The unit of one run's results against the truth table with this digest."""
    inputs = (
        digest,
        results.selection,
        *(key for _, key in results.clusters),
        *results.typicality,
        *results.typicality_before,
    )
    return Unit(STAGE, ALGO, inputs, {"cell": cell})


@stage_task(STAGE)
def evaluate(root: str, truth_url: str, digest: str, results: Results, cell: int) -> Done:
    """Average precision of typicality, hits of patches and purity of clusters.

    The truth is read only where there is something to measure; `digest` is its `truth_digest`.
    """

    def produce(attempt: Attempt) -> None:
        opened = open_root(root)
        data = read_bytes(truth_url)
        if hashlib.sha256(data).hexdigest() != digest:
            raise InputError(f"{truth_url} has changed during the run; start again")
        truth = pq.read_table(pa.BufferReader(data))
        selection = selected(opened, results.selection)
        check_truth(truth, selection["uri"].to_pylist())
        after = _pixel_scores(opened, results.dataset, results.typicality, truth, cell)
        measured: dict[str, Any] = {
            "average_precision": {
                "after": after.average_precision,
                "base_rate": after.base_rate,
            },
            "hits": hits(selection, truth),
            "cluster_purity": cluster_purity(current_clusters(opened, results), truth),
        }
        if results.typicality_before:
            before = _pixel_scores(opened, results.compared, results.typicality_before, truth, cell)
            measured["average_precision"]["before"] = before.average_precision
        attempt.write_json(RESULT, measured)

    return fill(root, evaluation_unit(results, digest, cell), produce)


def measured_truth(root: str, key: str) -> dict[str, Any]:
    """The numbers of a published evaluation."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    numbers: dict[str, Any] = read_json(opened, manifest, RESULT)
    return numbers


def _pixel_scores(
    root: Root, dataset: Sequence[Shard], keys: Sequence[str], truth: pa.Table, cell: int
) -> PixelScores:
    scores = PixelScores.empty()
    with Progress(STAGE, len(keys), "shards") as progress:
        for shard, key in zip(dataset, keys, strict=True):
            manifest = finished(root, typicality.STAGE, key)
            uris = {(image.image_id, image.label): image.uri for image in good_images(root, shard)}
            scores = scores.merge(score_pixels(read_maps(root, manifest), uris, truth, cell))
            progress.advance()
    return scores
