"""The digest of one night: what is new, which clusters entered, left or moved, what it cost.

In: a `Digest`, and the patches of the clusters that entered. Out: a page for the night, a page of
all nights, and the same in Markdown. The pages lie at `nights/` below the root of the results and
show pictures from the unit of their night; like the others they fetch and run nothing, and labels
and file names only ever appear as escaped text.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby, zip_longest
from pathlib import Path

from diffmining_core.report import figures
from diffmining_core.report.environment import environment
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.figures import Tile
from diffmining_core.report.pictures import save_sprite
from diffmining_core.report.source import SMALL_CLUSTER

NIGHT_FORMAT = "%Y-%m-%dT%H-%MZ"
"""A night's name: when it was to start, UTC, as a folder can be called."""

SPRITE, STRIP = "patches.webp", "strip.webp"
MARKDOWN_BYTES = 180_000
"""Of a digest as Markdown, its pictures in it."""

_STRIP_TILES = 8
_MARKDOWN_TILES, _MARKDOWN_TILE = 6, 40
_NAMED = 12  # labels, set-aside images or clusters that Markdown names


@dataclass(frozen=True, kw_only=True)
class LabelChanges:
    """What became of one label's clusters; ranks are 0-based.

    page, page_before: the label's page in the report of this night and in the one before; None
    where the label was not there. moved: ranks before and now.
    """

    label: str
    page: str | None
    page_before: str | None
    entered: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    moved: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ShownCluster:
    """A cluster that entered, with its most central patches; corners: their x, y in the sprite."""

    label: str
    rank: int
    page: str
    members: int
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True, kw_only=True)
class SpriteFacts:
    """Size of the picture that holds all patches, and of a patch in it, px."""

    width: int
    height: int
    tile: int


@dataclass(frozen=True, kw_only=True)
class Work:
    """The model's work of a night.

    gpu_seconds: of the results made tonight, times the GPUs that each took. cpu_seconds: of those
    made without one. price: of a GPU hour, 0 if nobody said.
    """

    gpu_seconds: float
    cpu_seconds: float
    price: float
    currency: str

    @property
    def hours(self) -> str:
        """The GPU hours, or, where no GPU did anything, those of the CPU."""
        return f"{self.hours_number} {self.hours_name}"

    @property
    def hours_name(self) -> str:
        """Of which kind the hours are."""
        return "CPU hours" if self.cpu_seconds and not self.gpu_seconds else "GPU hours"

    @property
    def hours_number(self) -> str:
        """How many of that kind."""
        hours = (self.gpu_seconds or self.cpu_seconds) / 3600
        if 0 < hours < 0.01:
            return f"{max(hours, 0.001):.3f}"
        return f"{hours:,.{0 if hours >= 100 or not hours else 1 if hours >= 10 else 2}f}"

    @property
    def cost(self) -> str | None:
        """What the GPU hours cost, None without a price or without a GPU."""
        if not self.price or not self.gpu_seconds:
            return None
        return f"{self.gpu_seconds / 3600 * self.price:,.2f} {self.currency}".rstrip()


@dataclass(frozen=True, kw_only=True)
class Digest:
    """One night.

    night, previous: names of this night and of the one it is told against, None for the first.
    title: of the dataset. shards, images, labels: how many there are now. new_…, gone_…: since the
    night before; relabelled: images that have another label than then. set_aside: (uri, reason) of
    new images that cannot be used, the first of `set_aside_count`. model: what became of it, in
    words. report, report_before: folders of the pages of results, from the root. measured: whether
    the results are others than the night before.
    """

    night: str
    previous: str | None
    title: str
    measured: bool
    shards: int
    images: int
    labels: int
    new_shards: int
    new_images: int
    gone_images: int
    relabelled: int
    new_labels: tuple[str, ...]
    gone_labels: tuple[str, ...]
    set_aside: tuple[tuple[str, str], ...]
    set_aside_count: int
    model: str
    changes: tuple[LabelChanges, ...]
    shown: tuple[ShownCluster, ...]
    sprite: SpriteFacts | None
    work: Work
    report: str
    report_before: str | None

    @property
    def entered(self) -> int:
        """How many clusters entered."""
        return sum(len(of_label.entered) for of_label in self.changes)

    @property
    def left(self) -> int:
        """How many clusters left."""
        return sum(len(of_label.left) for of_label in self.changes)

    @property
    def moved(self) -> int:
        """How many clusters moved."""
        return sum(len(of_label.moved) for of_label in self.changes)

    @property
    def started(self) -> datetime:
        """When the night was to start, UTC."""
        return started(self.night)

    def row(self) -> NightRow:
        """What the page of all nights says of this one."""
        return NightRow(
            night=self.night,
            measured=self.measured,
            new_shards=self.new_shards,
            new_images=self.new_images,
            gone_images=self.gone_images,
            relabelled=self.relabelled,
            set_aside=self.set_aside_count,
            entered=self.entered,
            left=self.left,
            moved=self.moved,
            model=self.model,
            hours=self.work.hours,
            cost=self.work.cost,
            strip=strip_size(len(cluster.corners) for cluster in self.shown),
        )


@dataclass(frozen=True, kw_only=True)
class NightRow:
    """A night among all others; strip: size of its picture, px, None where it has none."""

    night: str
    measured: bool
    new_shards: int
    new_images: int
    gone_images: int
    relabelled: int
    set_aside: int
    entered: int
    left: int
    moved: int
    model: str
    hours: str
    cost: str | None
    strip: tuple[int, int] | None

    @property
    def started(self) -> datetime:
        """When the night was to start, UTC."""
        return started(self.night)

    @property
    def images_text(self) -> str:
        """What is new or gone of the images."""
        words = []
        if self.new_images or self.new_shards:
            words.append(
                f"{counted(self.new_images, 'new image')} in {counted(self.new_shards, 'shard')}"
            )
        if self.gone_images:
            words.append(f"{counted(self.gone_images, 'image')} gone")
        if self.relabelled:
            words.append(f"{self.relabelled:,} relabelled")
        if self.set_aside:
            words.append(f"{self.set_aside:,} set aside")
        if self.model == "finetuned anew":
            words.append(f"model {self.model}" if words else f"Model {self.model}")
        return ", ".join(words) or "No new images"

    @property
    def clusters_text(self) -> str:
        """What became of the clusters."""
        counts = {"entered": self.entered, "left": self.left, "moved": self.moved}
        said = [f"{count:,} {what}" for what, count in counts.items() if count]
        return f"Clusters: {', '.join(said)}" if said else "No cluster changed"

    @property
    def cost_text(self) -> str:
        """Hours, and what they cost if that is known."""
        return self.hours if self.cost is None else f"{self.hours}, {self.cost}"

    @property
    def sentence(self) -> str:
        """The night in one sentence."""
        if not self.measured:
            return "Nothing new tonight: the results are as they were."
        return f"{self.images_text}. {self.clusters_text}. {self.cost_text}."


def counted(number: int, noun: str) -> str:
    """The number with its noun, in the plural where it is not one."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def started(night: str) -> datetime:
    """When a night was to start, UTC; ValueError for what is no night's name."""
    return datetime.strptime(night, NIGHT_FORMAT)


def strip_size(patches: Iterable[int]) -> tuple[int, int] | None:
    """Width and height in px of the small strip of clusters with so many patches each."""
    count = min(sum(patches), _STRIP_TILES)
    return figures.cover_size([[None] * count]) if count else None


def write_pictures(
    clusters: Sequence[Sequence[Tile]], folder: Path
) -> tuple[SpriteFacts, list[list[tuple[int, int]]]]:
    """Write the pictures of the clusters that entered; the sprite's facts, and the patches' places.

    A sprite for the night's page, a strip of a few patches for that of all nights, and a strip of
    each cluster for Markdown.
    """
    sprite = figures.sprite([tile for tiles in clusters for tile in tiles])
    save_sprite(sprite.image, folder / SPRITE)
    in_turn = [tile for tiles in zip_longest(*clusters) for tile in tiles if tile is not None]
    save_sprite(figures.cover([in_turn[:_STRIP_TILES]]), folder / STRIP)
    for number, tiles in enumerate(clusters[:_NAMED]):
        strip = figures.small_strip(tiles[:_MARKDOWN_TILES], _MARKDOWN_TILE)
        strip.save(folder / markdown_strip(number), "PNG", optimize=True)
    places = iter(range(sum(map(len, clusters))))
    corners = [[sprite.corner(next(places)) for _ in tiles] for tiles in clusters]
    width, height = sprite.image.size
    return SpriteFacts(width=width, height=height, tile=sprite.tile), corners


def markdown_strip(number: int) -> str:
    """The file of the strip of the shown cluster with this number; none from `_NAMED` on."""
    return f"strip-{number:02}.png"


def render_night(digest: Digest, unit: str, following: str | None) -> str:
    """The page `nights/NIGHT/index.html`; unit: the folder of its pictures, from the root.

    following: the name of the next night, if there has been one.
    """
    by_label = {
        label: list(clusters) for label, clusters in groupby(digest.shown, lambda one: one.label)
    }
    return (
        environment()
        .get_template("night.html")
        .render(
            root="../",
            top="../../",
            title=f"{_day(digest.started)} · {digest.title}",
            digest=digest,
            day=_day(digest.started),
            time=digest.started.strftime("%H:%M"),
            row=digest.row(),
            by_label=by_label,
            unpictured=digest.entered - len(digest.shown),
            pictures=f"../../{unit}/{SPRITE}",
            following=following,
            small_cluster=SMALL_CLUSTER,
            night_day=lambda night: _day(started(night)),
        )
    )


def render_nights(title: str, rows: Mapping[str, NightRow]) -> str:
    """The page `nights/index.html`: all nights, newest first; rows by the folder of each unit."""
    newest_first = sorted(rows.items(), key=lambda item: item[1].night, reverse=True)
    months = [
        (month, [(row, f"../{unit}/{STRIP}") for unit, row in of_month])
        for month, of_month in groupby(newest_first, lambda item: f"{item[1].started:%B %Y}")
    ]
    return (
        environment()
        .get_template("nights.html")
        .render(root="", title=f"Nights · {title}", name=title, months=months, nights=len(rows))
    )


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y}"


def markdown(digest: Digest, strips: Sequence[bytes], page: str) -> str:
    """The digest for the Prefect UI, under `MARKDOWN_BYTES`, without the row's own sentence.

    strips: PNG of the shown clusters.
    """
    lines = [f"# {_day(digest.started)}: {markdown_text(digest.title)}", ""]
    if digest.measured:
        lines += _markdown_facts(digest)
    lines += [f"Page: {markdown_text(page, 1000)}", ""]
    if digest.shown:
        lines += _markdown_clusters(digest, strips, MARKDOWN_BYTES - len("\n".join(lines)))
    return "\n".join(lines)


def _markdown_facts(digest: Digest) -> list[str]:
    facts = {
        "Images": f"{digest.images:,} in {digest.shards:,} shards",
        "Model": markdown_text(digest.model),
        "New labels": _some(digest.new_labels),
        "Labels gone": _some(digest.gone_labels),
        "Set aside": _some(f"{uri}: {reason}" for uri, reason in digest.set_aside[:_NAMED]),
    }
    said = [f"| {name} | {text} |" for name, text in facts.items() if text]
    return ["| | |", "|---|---|", *said, ""]


def _some(texts: Iterable[str]) -> str:
    every = [markdown_text(text) for text in texts]
    more = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _markdown_clusters(digest: Digest, strips: Sequence[bytes], room: int) -> list[str]:
    lines = ["## Clusters that entered", "", "| | cluster | patches | label |", "|---|---|---|---|"]
    for cluster, strip in zip(digest.shown, strips, strict=False):
        picture = f"![](data:image/png;base64,{base64.b64encode(strip).decode()})"
        line = (
            f"| {picture} | {cluster.rank + 1} | {cluster.members} "
            f"| {markdown_text(cluster.label)} |"
        )
        room -= len(line.encode()) + 1
        if room < 1000:
            break
        lines.append(line)
    if more := digest.entered - (len(lines) - 4):
        lines += ["", f"{more:,} more entered; the page shows them."]
    return lines
