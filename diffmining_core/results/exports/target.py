"""Where an export goes: a folder or an address that holds nothing yet."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffmining_core.errors import InputError
from diffmining_core.store.roots import Root, open_root


def open_target(url: str) -> Root:
    """The place to export to; InputError if something is there already."""
    target = open_root(url)
    if names := target.names():
        raise InputError(
            f"{target.url} should hold nothing yet, but has {names[0]}; remove what is there, or "
            "give another place"
        )
    return target


@contextmanager
def file_of(target: Root, name: str) -> Iterator[Path]:
    """A file on this machine's disk to write, which becomes `name` at the target in the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        yield path
        target.write_file(name, path)
