"""What the report is made from: the tables and pictures of one mining run, read label by label."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diffmining_core.report.ranking import ImageRanking
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.signs import Sign

KINDS = ("highest", "random", "lowest")
SHOWN_PER_CLUSTER = 12
STRIP_REACH = 48
"""Ranks that a strip is picked from, as it leaves out what is near black or near white."""
SMALL_CLUSTER = 6  # the paper shows clusters of at least this many members

_PLAIN_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_RESERVED_ON_WINDOWS = re.compile(r"con|prn|aux|nul|com[0-9]|lpt[0-9]")


Curve = Sequence[tuple[int, float]]
"""(step, loss) by step."""


@dataclass(frozen=True, kw_only=True)
class Losses:
    """How the losses of a finetuning went.

    training: of every step. held_out, seen: on images kept out of training and on images trained
    on, both under the same noise. first_bins, last_bins: the training loss in equal parts of the
    timesteps, of the first and of the last stretch of steps; None where no timestep fell.
    """

    training: Curve
    held_out: Curve = ()
    seen: Curve = ()
    first_bins: Sequence[float | None] = ()
    last_bins: Sequence[float | None] = ()


@dataclass(frozen=True, kw_only=True)
class SiteSource:
    """One run's results, as the site shows them.

    Positions are in pixels of the model-size image (y down, x right, `size` the patch's side).

    Attributes:
        title: heading of the overview.
        images: how many were mined.
        labels: every label, in the order of the page.
        selection: image_id, label, kind (highest | lowest | random), y, x, size, typicality, uri
            and label_rank (0-based within its label and kind).
        clusters: the columns of `selection` for the highest patches, and cluster (0 = highest
            median typicality) and distance (to the cluster's centroid).
        cluster_summary: label, cluster, members, median_typicality, spread (of the members'
            typicality, third quartile less first).
        set_aside: uri and reason of the images that were not used.
        load_pixels: uri -> uint8 [h, w, 3] model-size image; called from several threads.
        typicality: (image_id, label) -> float32 [h/cell, w/cell] map.
        facts: how the run was made, as names to text, numbers, lists or one more level of names;
            the list under "notes" is shown first, each as a sentence.
        before: `selection` of the base model, before finetuning.
        typicality_before: the base model's map, or None where there is none.
        truth: numbers measured against planted boxes: average_precision {before, after,
            base_rate}, hits {kind: share}, cluster_purity {label: shares of its top clusters}.
        losses: those of the finetuning.
        preview: step and PNG of images that the finetuned model generates, a row a label.
        signs: of failure; the page puts warnings before notes.
        sign_picture: name of a sign's picture -> its bytes, WebP.
        model_card: of the finetuned model, Markdown.
        ranking: of whole images by their mean typicality.
        features: label -> image_id, y, x and float32 features [n, d] of its highest patches, or
            None where there are none.
        shown: how the pages and tables show the addresses of images.
    """

    title: str
    images: int
    labels: Sequence[str]
    selection: pa.Table
    clusters: pa.Table
    cluster_summary: pa.Table
    set_aside: pa.Table
    load_pixels: Callable[[str], NDArray[np.uint8]]
    typicality: Callable[[str, str], NDArray[np.float32]]
    facts: Mapping[str, Any]
    before: pa.Table | None = None
    typicality_before: Callable[[str, str], NDArray[np.float32] | None] | None = None
    truth: Mapping[str, Any] | None = None
    losses: Losses | None = None
    preview: tuple[int, bytes] | None = None
    signs: Sequence[Sign] = ()
    sign_picture: Callable[[str], bytes] | None = None
    model_card: bytes | None = None
    ranking: ImageRanking | None = None
    features: Callable[[str], PatchFeatures | None] | None = None
    shown: ShownAddresses = field(default_factory=ShownAddresses)


@dataclass(frozen=True)
class PatchFeatures:
    """The model's features of patches: float32 [n, d], and the row of (image_id, y, x)."""

    row: Mapping[tuple[str, int, int], int]
    vectors: NDArray[np.float32]

    def of(self, patches: Iterable[tuple[str, int, int]]) -> NDArray[np.float32]:
        """The features of these patches, float32 [n, d]; KeyError for one that has none."""
        return self.vectors[[self.row[patch] for patch in patches]]


@dataclass(frozen=True)
class Patch:
    """A square of a model-size image and the mean typicality in it.

    is_image: it stands for its whole image, whose middle it shows and whose mean it has.
    """

    image_id: str
    uri: str
    y: int
    x: int
    size: int
    typicality: float
    is_image: bool = False

    @property
    def place(self) -> tuple[str, int, int, int]:
        """What it shows, whichever model scored it."""
        return self.image_id, self.y, self.x, self.size

    @property
    def image_name(self) -> str:
        """The file name at the end of the uri."""
        return PurePosixPath(self.uri).name


@dataclass(frozen=True)
class Cluster:
    """A ranked cluster and its members nearest to the centroid."""

    rank: int
    members: int
    median_typicality: float
    spread: float
    patches: tuple[Patch, ...]

    @property
    def is_small(self) -> bool:
        """Whether it has too few members to be called an element of its label."""
        return self.members < SMALL_CLUSTER


def label_patches(selection: pa.Table, label: str, kind: str) -> list[Patch]:
    """The patches of one label and kind, by rank."""
    mine = pc.and_(pc.equal(selection["label"], label), pc.equal(selection["kind"], kind))
    return list(_patches(selection.filter(mine).sort_by("label_rank")))


def label_clusters(source: SiteSource, label: str, shown: int = SHOWN_PER_CLUSTER) -> list[Cluster]:
    """The clusters of one label by rank, each with the `shown` members nearest to its mean."""
    of_label = source.clusters.filter(pc.equal(source.clusters["label"], label))
    summary = source.cluster_summary.filter(pc.equal(source.cluster_summary["label"], label))
    clusters = []
    for row in summary.sort_by("cluster").to_pylist():
        members = of_label.filter(pc.equal(of_label["cluster"], row["cluster"]))
        nearest = members.sort_by([("distance", "ascending"), ("label_rank", "ascending")])
        clusters.append(
            Cluster(
                rank=row["cluster"],
                members=row["members"],
                median_typicality=row["median_typicality"],
                spread=row["spread"],
                patches=tuple(_patches(nearest.slice(0, shown))),
            )
        )
    return clusters


def best_rows(source: SiteSource, label: str, rows: int, columns: int) -> list[tuple[Patch, ...]]:
    """What to show of a label at a glance: the nearest members of its best clusters.

    Small clusters only come in where no other is left; a label without clusters shows its highest
    patches.
    """
    clusters = sorted(label_clusters(source, label, columns), key=lambda cluster: cluster.is_small)
    if clusters:
        return [cluster.patches for cluster in clusters[:rows]]
    highest = label_patches(source.selection, label, "highest")[: rows * columns]
    return [tuple(highest[at : at + columns]) for at in range(0, len(highest), columns)]


def shown_pairs(
    selection: pa.Table, before: pa.Table | None, clusters: pa.Table, ranking: ImageRanking | None
) -> set[tuple[str, str]]:
    """(image_id, label) of every patch and image that a page may show, and so needs the map of."""
    may_show = [
        table.filter(pc.less(table["label_rank"], STRIP_REACH))
        for table in (selection, before)
        if table is not None
    ]
    by_distance = clusters.sort_by(
        [("label", "ascending"), ("cluster", "ascending"), ("distance", "ascending")]
    )
    nearest: dict[tuple[str, int], int] = {}
    central = []
    names = by_distance["label"].to_pylist(), by_distance["cluster"].to_pylist()
    for row, cluster in enumerate(zip(*names, strict=True)):
        nearest[cluster] = nearest.get(cluster, 0) + 1
        if nearest[cluster] <= SHOWN_PER_CLUSTER:
            central.append(row)
    pairs = {
        pair
        for table in [*may_show, by_distance.take(central)]
        for pair in zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
    }
    for label, images in ranking.of_label.items() if ranking else ():
        pairs |= {(image_id, label) for _, image_id, _ in (*images.highest, *images.lowest)}
    return pairs


def label_slugs(labels: Sequence[str]) -> dict[str, str]:
    """A distinct file name (without suffix) for every label, made of a-z, 0-9 and hyphens only.

    A label that is such a name already keeps it; any other gets some of its hash behind what is
    left of it, so that no two labels meet on a file system that ignores case.
    """
    slugs = {label: label for label in labels if _is_plain(label)}
    taken = set(slugs.values())
    for label in labels:
        if label in slugs:
            continue
        digest = hashlib.sha256(label.encode()).hexdigest()
        length = 6
        while (slug := _readable_part(label) + digest[:length]) in taken:
            length += 6
        slugs[label] = slug
        taken.add(slug)
    return slugs


def _is_plain(label: str) -> bool:
    return bool(
        len(label) <= 60
        and _PLAIN_SLUG.fullmatch(label)
        and not _RESERVED_ON_WINDOWS.fullmatch(label)
    )


def _readable_part(label: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_only.lower())[:40].strip("-")
    return f"{words}-" if words else "label-"


def _patches(table: pa.Table) -> Iterator[Patch]:
    columns = ["image_id", "uri", "y", "x", "size", "typicality"]
    for row in table.select(columns).to_pylist():
        yield Patch(**row)
