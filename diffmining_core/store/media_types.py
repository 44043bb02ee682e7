"""What kind of content a file is, as a browser has to be told it."""

from __future__ import annotations

from pathlib import PurePosixPath

MEDIA_TYPES = {
    ".avif": "image/avif",
    ".css": "text/css; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}
"""By the end of a name, of the files that pages consist of and lead to.

Not from Python's `mimetypes`: what that knows differs between versions and machines.
"""


def media_type(name: str) -> str | None:
    """The media type of file `name`, None for what pages do not lead to."""
    return MEDIA_TYPES.get(PurePosixPath(name).suffix)
