"""Which files of a root a browser may have: the published pages and what these lead to.

In: a root and a path as a browser asks for it. Out: the file, its type and how long it stays as it
is. Everything else at the root (manifests, maps, models, what an attempt left behind) counts as
missing, and no link is followed out of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from diffmining_core.store.ledger import Manifest, read_bytes, read_manifest
from diffmining_core.store.media_types import media_type
from diffmining_core.store.roots import Root, checked_name

INNER = ("results.json", "root.html")
"""Of a page's own files those that no page leads to: they name other units."""

_ROOT_FILE = re.compile(r"[a-z0-9-]+\.html|summary\.json")
_NIGHTS = re.compile(r"nights/.+")
_OF_UNIT = re.compile(
    r"(report|parallel_report|localization|study|comparison|night)"
    r"/([0-9a-f]+)/(attempt-[0-9a-f]{32})/(.+)"
)


@dataclass(frozen=True)
class ServedFile:
    """A file that a browser may have.

    kind: its media type. digest: hex, another for another content. is_immutable: whether this
    address will never have another content. read: its bytes.
    """

    kind: str
    digest: str
    is_immutable: bool
    read: Callable[[], bytes]


def served_file(root: Root, path: str) -> ServedFile | None:
    """The file at `path`, None for what is not there and for what nobody may have.

    OSError and InputError as of the storage; CorruptFileError by `read` where it was damaged.
    """
    try:
        parts = checked_name(path).split("/")
    except ValueError:
        return None
    kind = media_type(path)
    if kind is None or any(part.startswith(".") for part in parts) or not root.holds(path):
        return None
    if unit := _OF_UNIT.fullmatch(path):
        return _of_unit(root, kind, *unit.groups())
    if _ROOT_FILE.fullmatch(path) or _NIGHTS.fullmatch(path):
        try:
            content = root.read_bytes(path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        return ServedFile(kind, hashlib.sha256(content).hexdigest(), False, lambda: content)
    return None


def _of_unit(
    root: Root, kind: str, stage: str, key: str, attempt: str, name: str
) -> ServedFile | None:
    """A file of a published unit; an attempt that is not the one published has none."""
    manifest = read_manifest(root, stage, key)
    if manifest is None or manifest.attempt != f"{stage}/{key}/{attempt}":
        return None
    return _of_manifest(root, manifest, kind, name)


def _of_manifest(root: Root, manifest: Manifest, kind: str, name: str) -> ServedFile | None:
    record = manifest.files.get(name)
    if record is None or name in INNER:
        return None
    return ServedFile(kind, record["sha256"], True, partial(read_bytes, root, manifest, name))
