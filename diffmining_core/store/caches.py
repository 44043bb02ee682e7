"""The user's cache folder, for local copies of what lies elsewhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def cache_folder() -> Path:
    """`diffmining` in the user's cache folder, which `XDG_CACHE_HOME` may say."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffmining"


@contextmanager
def filled_aside(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` with all its files or not at all.

    Where another process was first, with the same files, its folder stays.
    """
    aside = folder.with_name(f".{folder.name}.{uuid4().hex}")
    aside.mkdir(parents=True)
    try:
        yield aside
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
