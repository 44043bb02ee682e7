"""What a run has made, for notebooks and programs: tables, typicality maps, pictures and figures.

Everything is read only and comes from the root alone, local, in memory or on S3; the pixels come
from where the images lie.

>>> results = open_results("mined")
>>> results
MinedResults('mined': 2 labels, 18 images)

Tables are Arrow's, for pandas (`table.to_pandas()`), polars (`polars.from_arrow(table)`) and
others.

>>> best = results.patches("almara", kind="highest").to_pandas()
>>> best.columns.tolist()
['image_id', 'label', 'kind', 'rank', 'y', 'x', 'size', 'typicality', 'uri', 'label_rank']
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from diffmining_core.clusters.kmeans import cluster_summary
from diffmining_core.errors import InputError
from diffmining_core.images.addresses import opened_parquet, parquet_batches
from diffmining_core.images.pixels import load_pixels
from diffmining_core.report.layouts import Figure
from diffmining_core.report.overlays import label_scale, overlay
from diffmining_core.report.pictures import crop
from diffmining_core.report.source import Patch, SiteSource
from diffmining_core.results import chosen
from diffmining_core.results.image_addresses import image_addresses
from diffmining_core.results.maps import UnitMaps
from diffmining_core.results.references import (
    CLUSTERS,
    FEATURES,
    FEATURES_TABLE,
    REPORT,
    Results,
    results_of,
    summarised_report,
)
from diffmining_core.store.ledger import (
    Manifest,
    file_url,
    read_json,
    read_manifest,
    read_table,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import RUN_FORMAT, older_format, read_run

Kind = Literal["highest", "random", "lowest"]
Map = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
TableRow = Mapping[str, Any]
"""A row of `patches`, `clusters` or `images`, as `to_pylist` gives it."""

BATCH_ROWS = 10_000


def open_results(root: str) -> MinedResults:
    """The results at a root: a folder, or an address such as `s3://bucket/mined`.

    InputError, in one sentence, where there is no finished page of `diffmining mine`, or one that
    this version cannot read.

    >>> open_results("mined").title
    'What is typical of two places'
    """
    opened = open_root(root, create=False)
    run = read_run(opened)
    key = summarised_report(opened)
    manifest = read_manifest(opened, REPORT, key) if key else None
    if key is None or manifest is None:
        raise InputError(
            f"{opened.url} holds no finished page; run `diffmining mine` there to its end, or give "
            "the root of a finished run"
        )
    try:
        return MinedResults(opened, manifest, results_of(opened, key))
    except (LookupError, TypeError, ValueError) as error:
        if run is None or run.format == RUN_FORMAT:
            raise
        raise InputError(older_format(opened, run)) from error


def patch_of(row: TableRow) -> Patch:
    """The patch that a row of `patches` or `clusters` tells of."""
    names = ("image_id", "uri", "y", "x", "size", "typicality")
    return Patch(**{name: row[name] for name in names})


class MinedResults:
    """The results of one finished run, read only; made by `open_results`.

    Positions (y, x, size) are pixels of the model-size image: the upright image, resized so that
    its shorter side has `size` pixels. A `label` that is not there raises InputError.
    """

    def __init__(self, root: Root, report: Manifest, made_from: Results) -> None:
        self.root = root
        self.made_from = made_from
        self._report = report
        self._tables: dict[str, pa.Table] = {}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.root.url.rpartition('/')[2]!r}: "
            f"{len(self.labels)} labels, {self.made_from.images} images)"
        )

    @property
    def title(self) -> str:
        """The heading of the page."""
        return str(self.summary["title"])

    @cached_property
    def labels(self) -> list[str]:
        """Every label, sorted.

        >>> open_results("mined").labels
        ['almara', 'borvik']
        """
        return sorted({label for shard in self.made_from.dataset for label, _ in shard.labels})

    @property
    def size(self) -> int:
        """Pixels of the shorter side of the model-size images."""
        return self.made_from.size

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The page's numbers: counts, truth where there is one, losses, signs of failure."""
        summary: dict[str, Any] = read_json(self.root, self._report, "data/summary.json")
        return summary

    @property
    def facts(self) -> dict[str, Any]:
        """How the run was made: dataset, model, typicality, patches, and notes.

        >>> open_results("mined").facts["model"]
        'tiny'
        """
        facts: dict[str, Any] = self.summary["facts"]
        return facts

    @property
    def has_before(self) -> bool:
        """Whether something was also measured before finetuning."""
        return self.made_from.selection_before is not None

    def patches(
        self, label: str | None = None, kind: Kind | None = None, *, before: bool = False
    ) -> pa.Table:
        """The patches chosen of each label, by label, kind and rank.

        Columns: image_id, label, kind (highest, random, lowest), rank (in its image), y, x, size,
        typicality (the mean of the map in it), uri, label_rank (0 is the first of its label and
        kind). before: those that the model chose before finetuning.

        >>> results = open_results("mined")
        >>> results.patches("almara", "lowest").select(["y", "x", "label_rank"]).slice(0, 2)
        pyarrow.Table
        y: int32
        x: int32
        label_rank: int32
        ----
        y: [[...]]
        x: [[...]]
        label_rank: [[0,1]]
        """
        if before and not self.has_before:
            raise InputError(
                f"{self.root.url}: nothing was measured before finetuning; mine with "
                "--before-shards 1 or more"
            )
        if kind is not None and kind not in ("highest", "random", "lowest"):
            raise InputError(f"kind must be highest, random or lowest, but is {kind!r}")
        table = self._of(self._table("before" if before else "selection"), label)
        return table if kind is None else table.filter(pc.field("kind") == kind)

    def clusters(self, label: str | None = None) -> pa.Table:
        """The highest patches by cluster, nearest to its mean first.

        The columns of `patches`, cluster (0 is the most typical of its label) and distance.

        >>> clusters = open_results("mined").clusters("borvik").to_pandas()
        >>> clusters.groupby("cluster").size().to_dict()
        {0: 7, 1: 5}
        """
        return self._of(self._table("clusters"), label)

    def cluster_summary(self, label: str | None = None) -> pa.Table:
        """A row for each cluster: members, and the median, spread and extremes of typicality.

        >>> open_results("mined").cluster_summary("borvik")["members"].to_pylist()
        [7, 5]
        """
        return self._of(self._table("cluster_summary"), label)

    def images(self, label: str | None = None) -> pa.Table:
        """The images under each of their labels with their typicality, the mean of the whole map.

        Columns: image_id, label, uri, typicality. With very many images `batches("images")` needs
        less memory.

        >>> images = open_results("mined").images("almara")
        >>> most = images.sort_by([("typicality", "descending")]).to_pylist()[0]
        >>> sorted(most)
        ['image_id', 'label', 'typicality', 'uri']
        """
        return self._of(self._table("images"), label)

    def set_aside(self) -> pa.Table:
        """The images that were not used: uri and reason.

        >>> open_results("mined").set_aside().num_rows
        0
        """
        return self._table("set_aside")

    def features(self, label: str) -> pa.Table:
        """The highest patches of a label with their DIFT features, by rank.

        The columns of `patches`, and feature (float32, as long for each).

        >>> features = open_results("mined").features("almara")["feature"]
        >>> features.combine_chunks().flatten().to_numpy().reshape(len(features), -1).shape
        (12, 8)
        """
        self._check(label)
        keys = dict(self.made_from.clusters)
        unit = read_manifest(self.root, CLUSTERS, keys[label]) if label in keys else None
        made = read_manifest(self.root, FEATURES, unit.inputs[0]) if unit else None
        if made is None:
            raise InputError(
                f"{self.root.url} has no features of {label!r}; run the same `diffmining mine` "
                "again"
            )
        return read_table(self.root, made, FEATURES_TABLE)

    def batches(self, table: str) -> Iterator[pa.RecordBatch]:
        """One of the page's tables in one part or more: memory does not grow with its rows.

        table: selection, before, clusters, cluster_summary, images or set_aside.

        >>> sum(batch.num_rows for batch in open_results("mined").batches("images"))
        18
        """
        with opened_parquet(file_url(self.root, self._report, self._file(table))) as parquet:
            if not parquet.metadata.num_rows:
                yield pa.RecordBatch.from_pylist([], parquet.schema_arrow)
            for batch in parquet_batches(parquet, BATCH_ROWS, parquet.schema_arrow.names):
                yield from self._readable(pa.Table.from_batches([batch])).to_batches()

    @property
    def tables(self) -> list[str]:
        """The names that `batches` knows here."""
        names = (name.removeprefix("data/") for name in self._report.files)
        return sorted(
            name.removesuffix(".parquet")
            for name in names
            if name.endswith(".parquet") and "/" not in name
        )

    def typicality(self, image_id: str, label: str, *, before: bool = False) -> Map:
        """The typicality map of an image under a label, float32 [h, w], at latent resolution.

        The first call lists what each unit has; a unit (about 1000 maps) is read at once and the
        last one is kept, so ask image by image in the order of `images`. InputError where there is
        no such map.

        >>> results = open_results("mined")
        >>> row = results.images("almara").to_pylist()[0]
        >>> results.typicality(row["image_id"], "almara").shape
        (8, 10)
        """
        self._check(label)
        found = self._maps(before).get((image_id, label))
        if found is None:
            when = " before finetuning" if before else ""
            raise InputError(
                f"{self.root.url} has no typicality map of image {image_id} under {label!r}{when}; "
                "`images` lists what there is"
            )
        return found

    def typicality_maps(
        self, label: str | None = None, *, before: bool = False
    ) -> Iterator[tuple[str, Map]]:
        """(image_id, map) of every image of a label, or of every image under each of its labels.

        One unit of about 1000 maps is in memory at a time.

        >>> results = open_results("mined")
        >>> means = {image_id: one.mean() for image_id, one in results.typicality_maps("almara")}
        >>> len(means)
        9
        """
        if label is not None:
            self._check(label)
        for image_id, of_label, one in self._maps(before):
            if label in (None, of_label):
                yield image_id, one

    def pixels(self, row: TableRow) -> Pixels:
        """The model-size image of a row, uint8 [h, w, 3]; ImageError if it is not the same now.

        >>> results = open_results("mined")
        >>> results.pixels(results.images("borvik").to_pylist()[0]).shape
        (64, 80, 3)
        """
        return load_pixels(row["uri"], self.size, row["image_id"])

    def patch_pixels(self, row: TableRow) -> Pixels:
        """What a patch of `patches` or `clusters` shows, uint8 [size, size, 3].

        >>> results = open_results("mined")
        >>> results.patch_pixels(results.patches("borvik", "highest").to_pylist()[0]).shape
        (20, 20, 3)
        """
        return crop(self.pixels(row), patch_of(row)).copy()

    def overlay(
        self, row: TableRow, *, before: bool = False, scale: float | None = None
    ) -> Image.Image:
        """The model-size image of a row with the typicality of its label laid over it, RGB.

        Warm where the label helps, cool where it hurts. scale: the |typicality| where the colours
        end, for pictures that are to be compared; the 99th percentile of this map if unset.

        >>> results = open_results("mined")
        >>> results.overlay(results.patches("almara", "highest").to_pylist()[0]).size
        (80, 64)
        """
        one = self.typicality(row["image_id"], row["label"], before=before)
        below = Image.fromarray(self.pixels(row)).convert("RGBA")
        colours = overlay(one, label_scale([one]) if scale is None else scale)
        colours = colours.resize(below.size, Image.Resampling.BILINEAR)
        return Image.alpha_composite(below, colours).convert("RGB")

    def figure(self, label: str, layout: Literal["clusters", "strips"] = "clusters") -> Figure:
        """A figure of a label as in the paper, to show or to save as PNG, SVG or PDF.

        clusters: the 6 most typical clusters with 6 members or more, a row each, nearest first.
        strips: highest, random and lowest patches, before and after finetuning where both are
        there. InputError where a label has no such clusters.

        >>> open_results("mined").figure("almara").save("almara.pdf")
        """
        self._check(label)
        if layout == "clusters":
            return chosen.clusters_figure(self._source, label)
        return chosen.strips_figure(self._source, label)

    def overview(self) -> list[Figure]:
        """All labels with the best of each, 24 to a figure.

        >>> (sheet,) = open_results("mined").overview()
        >>> sheet.save("overview.svg")
        """
        return list(chosen.overview_figures(self._source))

    def _maps(self, before: bool) -> UnitMaps:
        return self._maps_before if before else self._maps_after

    @cached_property
    def _maps_after(self) -> UnitMaps:
        return UnitMaps(self.root, self.made_from.dataset, self.made_from.typicality)

    @cached_property
    def _maps_before(self) -> UnitMaps:
        return UnitMaps(self.root, self.made_from.compared, self.made_from.typicality_before)

    @cached_property
    def _source(self) -> SiteSource:
        """What the page's own functions choose patches from."""
        clusters = self.clusters()
        return SiteSource(
            title=self.title,
            images=self.made_from.images,
            labels=self.labels,
            selection=self.patches(),
            clusters=clusters,
            cluster_summary=cluster_summary(clusters),
            set_aside=self.set_aside(),
            load_pixels=lambda uri: load_pixels(uri, self.size),
            typicality=self.typicality,
            facts=self.facts,
            before=self.patches(before=True) if self.has_before else None,
        )

    def _table(self, name: str) -> pa.Table:
        if name not in self._tables:
            table = read_table(self.root, self._report, self._file(name))
            self._tables[name] = self._readable(table)
        return self._tables[name]

    def _readable(self, table: pa.Table) -> pa.Table:
        """A table of the page, with the addresses where its images are read."""
        if not {"image_id", "uri"} <= set(table.schema.names):
            return table
        uris = map(self._addresses.get, table["image_id"].to_pylist(), table["uri"].to_pylist())
        place = table.schema.get_field_index("uri")
        return table.set_column(place, "uri", pa.array(uris, pa.string()))

    @cached_property
    def _addresses(self) -> dict[str, str]:
        """Where each image is read, by its id."""
        shards = dict.fromkeys([*self.made_from.compared, *self.made_from.dataset])
        return image_addresses(self.root, shards)

    def _file(self, name: str) -> str:
        if name not in self.tables:
            raise InputError(
                f"{self.root.url} has no table {name} ({self._named(self.tables)}); run the same "
                "`diffmining mine` again to have its page made by this version"
            )
        return f"data/{name}.parquet"

    def _of(self, table: pa.Table, label: str | None) -> pa.Table:
        if label is None:
            return table
        self._check(label)
        return table.filter(pc.field("label") == label)

    def _check(self, label: str) -> None:
        if label not in self.labels:
            raise InputError(
                f"{self.root.url} has no label {label!r}; it has {self._named(self.labels)}"
            )

    @staticmethod
    def _named(names: Sequence[str], shown: int = 8) -> str:
        more = f" and {len(names) - shown} more" if len(names) > shown else ""
        return ", ".join(names[:shown]) + more
