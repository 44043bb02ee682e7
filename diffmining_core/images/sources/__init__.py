"""Datasets where they are: what kind a place holds, and its images as listed.

In: a local path or fsspec URL of a folder with one sub-folder per label, a manifest (CSV, TSV,
Parquet), WebDataset tars, or Parquet files with the images in them; a pattern stands for several.
Or a folder that is as a recipe's layout describes it.
Out: a plan of dataset shards. Nothing is copied, and no listing is held in memory.
"""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import fingerprint, url_of
from diffmining_core.images.planning import Part
from diffmining_core.images.reach import Reach, advice, own_place
from diffmining_core.images.shards import FoundImage, IndexPlan, KnownShard
from diffmining_core.images.sources.described import DescribedSource
from diffmining_core.images.sources.folders import FolderSource, holds_images
from diffmining_core.images.sources.layouts import FolderLayout, Layout, TableLayout
from diffmining_core.images.sources.manifests import ManifestSource
from diffmining_core.images.sources.names import rubbish
from diffmining_core.images.sources.tables import TableSource, image_column_of
from diffmining_core.images.sources.tars import TarSource
from diffmining_core.images.sources.text_tables import table_suffix
from diffmining_core.images.tally import Tally
from diffmining_core.secrets import without_secrets
from diffmining_core.store.roots import check_protocol, explained, filesystem, refuse_secrets

SPLIT = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev|eval)(?![^\W\d_])", re.IGNORECASE
)
"""Begins the names of folders that hold labels rather than being one, as `train2017`."""

TEXT_SUFFIXES = (".csv", ".tsv")  # also with `.gz`
PART_SUFFIXES = (*TEXT_SUFFIXES, ".parquet", ".tar")

BESIDE = "beside what is read"
NO_TARGET = "a link that leads to nothing"
PACKED_TAR = "a compressed tar, which is not read; unpack it to a .tar"

_PACKED_TAR = re.compile(r".*\.(tar\.\w+|tgz|tbz2?|txz|tzst)", re.IGNORECASE | re.DOTALL)

WANTED = (
    "give a folder with one sub-folder of images per label, a manifest (.csv, .tsv, .csv.gz, "
    ".tsv.gz, .parquet), WebDataset tars (.tar) or Parquet files with the images in them"
)


class Source(Protocol):
    """A dataset where it is."""

    url: str
    """Its address in the one form that does not depend on how it was typed."""

    @property
    def digest(self) -> str:
        """Sha256 hex of the listing: while it is the same, nothing has changed.

        For tars, manifests and Parquet files no file is opened; a folder is listed whole.
        """

    def images(self) -> Iterator[FoundImage]:
        """Every image as it is listed, in the listing's order."""

    def plan(self, known: Sequence[KnownShard], shard_rows: int) -> IndexPlan:
        """Which known shards still hold, and new shards of at most `shard_rows` rows."""


@dataclass(frozen=True)
class _Place:
    """Where a dataset is: its file system, its path there, and its address."""

    fs: Any
    path: str
    url: str


def canonical_url(url: str) -> str:
    """The one form of a dataset's address: an absolute local path, or a URL without a last slash.

    InputError if no file system is known for it.
    """
    return _place(url).url


def open_source(url: str, layout: Layout | None = None, allow: Sequence[str] = ()) -> Source:
    """The dataset at a local path, an fsspec URL or a pattern of them.

    The layout names its kind; without one, its files do. allow: places that it may reach beside its
    own. InputError if nothing is there, or nothing that is a dataset.
    """
    place = _place(url)
    with explained(place.url):
        if isinstance(layout, FolderLayout | TableLayout):
            return _source_as_described(place, layout, Reach(place.url, allow))
        source = _source_as_found(place, allow)
        if layout is None:
            return source
        if not isinstance(source, TarSource):
            raise InputError(
                f"dataset {place.url}: its recipe reads tars, but these are none; give tars, or "
                "leave the recipe out"
            )
        return TarSource(source.url, source.parts, layout, source.left_out)


def check_source(url: str, layout: Layout | None = None, allow: Sequence[str] = ()) -> None:
    """InputError unless there is a dataset with a labelled image; the first is enough."""
    source = open_source(url, layout, allow)
    faults: Counter[str] = Counter()
    for image in source.images():
        if image.fault is None:
            return
        faults[image.fault] += 1
    if elsewhere := advice(faults.elements()):
        raise InputError(f"dataset {source.url}: of its images {elsewhere}")
    reasons = "; ".join(f"{count} × {fault}" for fault, count in faults.most_common(3))
    raise InputError(
        f"dataset {source.url}: it has no image with a label ({reasons or 'no rows'}); "
        + (WANTED if layout is None else "see what its recipe says to put where")
    )


def check_apart(url: str, root: str) -> None:
    """InputError if a root is in its dataset.

    The pictures that a run writes would be images of the next one.
    """
    check_protocol(root)
    dataset = _place(url)
    try:
        fs, results = filesystem(root)
    except (ValueError, ImportError):  # said when the root is opened
        return
    if type(dataset.fs) is not type(fs):
        return
    path, inner = _real_path(fs, dataset.path), f"{_real_path(fs, results)}/stage/picture"
    with explained(dataset.url):
        if has_magic(path) and not dataset.fs.exists(path):
            pattern = re.compile(glob_translate(path))
            steps = inner.split("/")
            is_inside = any(pattern.match("/".join(steps[:n])) for n in range(1, len(steps) + 1))
        else:
            is_inside = inner.startswith(f"{path.rstrip('/')}/")
    if is_inside:
        raise InputError(
            f"root {root} lies in the dataset {dataset.url}, so that the results of one run "
            "would be images of the next; give a root beside the dataset"
        )


def _real_path(fs: Any, path: str) -> str:
    """The path, on this machine without links."""
    return os.path.realpath(path) if isinstance(fs, LocalFileSystem) else path.rstrip("/")


def _place(url: str) -> _Place:
    refuse_secrets("dataset", url)
    try:
        fs, path = filesystem(url)
    except (ValueError, ImportError) as error:
        raise InputError(
            f"dataset {url!r} is not understood ({error}): give a local folder or an address such "
            "as s3://bucket/folder"
        ) from error
    except OSError as error:  # of a server, or of the archive that the address leads through
        raise InputError(f"dataset {url}: it cannot be opened ({_why(error)})") from error
    if isinstance(fs, LocalFileSystem):
        path = os.path.normpath(path)
    return _Place(fs, path, url_of(fs, path))


def _why(error: OSError) -> str:
    return without_secrets(error.strerror or str(error))


def _source_as_found(place: _Place, allow: Sequence[str]) -> Source:
    if has_magic(place.path) and not place.fs.exists(place.path):
        return _source_of_pattern(place, Reach(own_place(place.url), allow))
    try:
        info = place.fs.info(place.path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            # fsspec's HTTP takes a server that is away for a missing file.
            sentence = f"dataset {place.url}: it cannot be reached ({_why(cause)})"
            raise InputError(sentence) from error
        raise InputError(f"dataset {place.url}: there is no such folder or file") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"dataset {place.url}: {error.strerror}") from error
        raise
    if info["type"] == "directory":
        return _source_in_folder(place, Reach(place.url, allow))
    folder = place.url.rpartition("/")[0] or "/"
    return _source_of_files(place, [info], Reach(folder, allow), Tally())


def _source_as_described(place: _Place, layout: FolderLayout | TableLayout, reach: Reach) -> Source:
    if not place.fs.isdir(place.path):
        raise InputError(
            f"dataset {place.url}: there is no such folder; with a recipe, give the one that holds "
            "the published dataset"
        )
    if isinstance(layout, TableLayout):
        return DescribedSource(place.url, place.fs, place.path, layout, reach)
    folder = f"{place.path}/{layout.folder}" if layout.folder else place.path
    if not place.fs.isdir(folder):
        raise InputError(
            f"dataset {place.url}: there is no folder {layout.folder}, which its recipe reads; put "
            "it there, or give the folder that it is in"
        )
    return FolderSource(place.url, place.fs, [folder], layout, reach)


def _source_of_pattern(place: _Place, reach: Reach) -> Source:
    left_out = Tally()
    infos = _followed(place, _matching(place), left_out)
    folders = [info for info in infos if info["type"] == "directory"]
    if folders:
        _leave_out(left_out, infos, folders)
        return FolderSource(
            place.url, place.fs, [info["name"] for info in folders], reach=reach, left_out=left_out
        )
    if not infos:
        raise InputError(f"dataset {place.url}: there is no such folder or file")
    parts = [info for info in infos if not _rubbish(info)] or infos
    _leave_out(left_out, infos, parts)
    return _source_of_files(place, parts, reach, left_out)


def _matching(place: _Place) -> list[dict[str, Any]]:
    """What a pattern stands for, in order; on this machine through links to folders too.

    But `**` goes through none: they may lead in circles.
    """
    if isinstance(place.fs, LocalFileSystem) and "**" not in place.path:
        paths = sorted(glob.glob(place.path, include_hidden=True))  # noqa: PTH207
        return [{"name": path, "islink": True} for path in paths]
    found = place.fs.glob(place.path, detail=True)
    return [found[path] for path in sorted(found)]


def _followed(
    place: _Place, infos: Iterable[dict[str, Any]], left_out: Tally
) -> list[dict[str, Any]]:
    """What is listed, with what its links lead to in their place, but for those to nothing."""
    followed = []
    for info in infos:
        try:
            followed.append(place.fs.info(info["name"]) if info.get("islink") else info)
        except OSError:
            left_out.add(NO_TARGET, PurePosixPath(info["name"]).name)
    return followed


def _leave_out(
    left_out: Tally, infos: Sequence[dict[str, Any]], taken: Sequence[dict[str, Any]]
) -> None:
    """Count what lies beside what is taken."""
    paths = {info["name"] for info in taken}
    for info in infos:
        if info["name"] not in paths:
            name = PurePosixPath(info["name"]).name
            packed = PACKED_TAR if _PACKED_TAR.fullmatch(name) else BESIDE
            left_out.add(rubbish(name) or packed, name)


def _source_in_folder(place: _Place, reach: Reach) -> Source:
    """A folder holds sub-folders of images, or the files of a dataset themselves."""
    left_out = Tally()
    listed = _followed(place, place.fs.ls(place.path, detail=True), left_out)
    infos = [info for info in listed if not _rubbish(info)]
    images = FolderSource(place.url, place.fs, [place.path], reach=reach)
    parts = [info for info in infos if _suffix(info) in (".tar", ".parquet")]
    folders = [info["name"] for info in infos if info["type"] == "directory"]
    if not parts or (folders and images.has_images()):
        _check_splits(place, folders)
        return images
    taken = _without_tables_of_tars(place, parts)
    _leave_out(left_out, listed, taken)
    return _source_of_files(place, taken, reach, left_out)


def _check_splits(place: _Place, folders: Sequence[str]) -> None:
    """InputError if all folders with images are splits with the labels in them."""
    splits = {folder for folder in folders if SPLIT.match(PurePosixPath(folder).name)}
    if not splits or any(holds_images(place.fs, folder) for folder in set(folders) - splits):
        return
    splits = {folder for folder in splits if holds_images(place.fs, folder)}
    names = sorted(PurePosixPath(folder).name for folder in splits)
    if splits and all(FolderSource(place.url, place.fs, [f]).has_images() for f in splits):
        raise InputError(
            f"dataset {place.url}: its folders {', '.join(names)} hold folders of images, so they "
            f"are splits and no labels; give '{place.url}/*' for all of them together, or one, "
            f"such as {place.url}/{names[-1]}"
        )


def _without_tables_of_tars(
    place: _Place, parts: Sequence[dict[str, Any]]
) -> Sequence[dict[str, Any]]:
    """The tars alone where Parquet files only repeat what is in them, as img2dataset writes."""
    tars = [info for info in parts if _suffix(info) == ".tar"]
    stems = {PurePosixPath(info["name"]).stem for info in tars}
    if not tars or len(tars) == len(parts):
        return parts
    if {PurePosixPath(info["name"]).stem for info in parts} == stems:
        return tars
    raise InputError(
        f"dataset {place.url}: it holds both tars and Parquet files; give '{place.url}/*.tar' or "
        f"'{place.url}/*.parquet'"
    )


def _source_of_files(
    place: _Place, infos: Sequence[dict[str, Any]], reach: Reach, left_out: Tally
) -> Source:
    suffixes = {_suffix(info) for info in infos}
    if len(suffixes) > 1 or not suffixes <= set(PART_SUFFIXES):
        names = ", ".join(sorted(suffix or "none" for suffix in suffixes))
        raise InputError(f"dataset {place.url}: files ending in {names} are no dataset; {WANTED}")
    parts = [Part(url_of(place.fs, info["name"]), fingerprint(info)) for info in infos]
    parts.sort(key=lambda part: part.url)
    for part in parts:
        reach.check(part.url)
    (suffix,) = suffixes
    if suffix == ".tar":
        return TarSource(place.url, parts, left_out=left_out)
    if suffix == ".parquet" and image_column_of(parts[0].url):
        return TableSource(place.url, parts, left_out)
    return ManifestSource(place.url, parts, reach, left_out)


def _suffix(info: dict[str, Any]) -> str:
    """The suffix of a file's name in lower case, of a table without `.gz`."""
    if info["type"] != "file":
        return ""
    inner = table_suffix(info["name"])
    return inner if inner in TEXT_SUFFIXES else PurePosixPath(info["name"]).suffix.lower()


def _rubbish(info: dict[str, Any]) -> str | None:
    return rubbish(PurePosixPath(info["name"]).name)
