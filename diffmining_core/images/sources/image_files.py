"""The image files below some folders, listed once, to be looked up by name."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from diffmining_core.images.addresses import fingerprint
from diffmining_core.images.planning import room_on_disk
from diffmining_core.images.sources.folders import files_below
from diffmining_core.images.sources.names import may_be_image
from diffmining_core.images.sources.text_tables import is_decoded


class ImageFiles(Protocol):
    """Where images are: by name, below one of several folders."""

    def find(self, name: str) -> tuple[str, str] | None:
        """Path and fingerprint of the image of this name; None if it is in no folder."""


class ListedFiles:
    """The image files below folders, from one listing that is kept on disk.

    Of two of the same name that of the first folder counts. count: how many there are.
    """

    def __init__(self, fs: Any, folders: Iterable[str]) -> None:
        with room_on_disk():
            # A database without a name is a temporary file that goes with its connection.
            self._files = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        weakref.finalize(self, self._files.close)
        with room_on_disk():
            self._files.execute("PRAGMA journal_mode = OFF")
            self._files.execute("CREATE TABLE files (name PRIMARY KEY, path, mark) WITHOUT ROWID")
            self._files.execute("BEGIN")
            for folder in folders:
                self._files.executemany(
                    "INSERT OR IGNORE INTO files VALUES (?, ?, ?)", _images_below(fs, folder)
                )
            self._files.execute("COMMIT")
        self.count = int(self._files.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def find(self, name: str) -> tuple[str, str] | None:
        """Path and fingerprint of the image of this name."""
        query = "SELECT path, mark FROM files WHERE name = ?"
        found: tuple[str, str] | None = self._files.execute(query, (name,)).fetchone()
        return found

    def names(self) -> Iterator[str]:
        """All of them, in order."""
        return (name for (name,) in self._files.execute("SELECT name FROM files ORDER BY name"))


class SoughtFiles:
    """Image files that are looked for one by one: for a few of them, listing none."""

    def __init__(self, fs: Any, folders: Sequence[str]) -> None:
        self.fs = fs
        self.folders = folders

    def find(self, name: str) -> tuple[str, str] | None:
        """Path and fingerprint of the image of this name."""
        for folder in self.folders:
            try:
                info = self.fs.info(f"{folder}/{name}")
            except (FileNotFoundError, NotADirectoryError):
                continue
            if info["type"] == "file":
                return f"{folder}/{name}", fingerprint(info)
        return None


def _images_below(fs: Any, folder: str) -> Iterator[tuple[str, str, str]]:
    """Names below the folder, paths, fingerprints; names that are no UTF-8 are nobody's."""
    for file in files_below(fs, folder):
        name = file.path.removeprefix(folder).lstrip("/")
        is_regular = file.fault is None and not file.is_no_file
        if is_regular and may_be_image(name) and is_decoded(name):
            yield name, file.path, file.mark
