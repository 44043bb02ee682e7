"""The storage's own clock, by which the ages of stored files are told."""

from __future__ import annotations

from uuid import uuid4

from diffmining_core.store.roots import Root


def storage_time(root: Root, folder: str = "") -> float:
    """What the storage's clock shows now, in seconds since 1970; S3 gives whole seconds.

    Found by writing a small hidden file to `folder` and removing it again; OSError if the storage
    does not say when it was written.
    """
    name = f".clock-{uuid4().hex}"
    rel = f"{folder}/{name}" if folder else name
    root.write_new(rel, b"tick")
    try:
        modified = {entry.name: entry.modified for entry in root.entries(folder)}.get(name)
    finally:
        root.remove(rel)
    if not modified:
        raise OSError(f"{root.url}: the storage does not say when a file was written")
    return modified
