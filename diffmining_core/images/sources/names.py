"""Tell images, other files and programs' rubbish apart by name."""

from __future__ import annotations

from functools import cache
from mimetypes import MimeTypes

IMAGE_ENDINGS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".gif", ".bmp", ".tif"),
        *(".tiff", ".heic", ".heif", ".hif", ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm"),
        *(".pbm", ".pnm"),
    }
)

_OTHER_ENDINGS = frozenset(
    {
        *(".md", ".rst", ".log", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".jsonl", ".parquet"),
        *(".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".safetensors", ".mat", ".db"),
        *(".sqlite", ".arrow", ".feather", ".cls", ".caption", ".xmp", ".aae", ".lock", ".ipynb"),
        *(".docx", ".xlsx", ".pptx", ".7z", ".rar", ".zst", ".mkv", ".geojson", ".sha256", ".md5"),
    }
)
"""Endings of files often found beside images that the table of media types may lack."""

_RUBBISH = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", ".@__thumb"),
        *("__macosx", ".ds_store", ".appledouble", ".spotlight-v100", ".trashes", ".fseventsd"),
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("lost+found", ".ipynb_checkpoints"),
    }
)
"""Lower-case names of what network drives, desktops and notebooks leave in folders."""

_RUBBISH_STARTS = ("._", ".trash-", ".nfs", ".fuse_hidden")

HIDDEN = "hidden"

_types = MimeTypes(filenames=())  # without the machine's own table


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; "" for none."""
    base = name.rpartition("/")[2]
    start = base.rfind(".")
    return base[start:].lower() if start > 0 else ""


def is_image_name(name: str) -> bool:
    """Whether a file's ending is that of an image."""
    own = ending(name)
    return own in IMAGE_ENDINGS or _media_type(own).startswith("image/")


def may_be_image(name: str) -> bool:
    """Whether a file is to be opened: its ending is an image's, or none, or not known."""
    own = ending(name)
    return is_image_name(name) or not (own in _OTHER_ENDINGS or _media_type(own))


def rubbish(path: str) -> str | None:
    """Why a file at a relative path is left out wherever it is; None for all other files."""
    parts = [part for part in path.split("/") if part not in (".", "..")]
    for part in parts:
        low = part.lower()
        if low in _RUBBISH:
            return f"left by a program: {part}"
        for start in _RUBBISH_STARTS:
            if low.startswith(start):
                return f"left by a program: {start}*"
    return HIDDEN if any(part.startswith(".") for part in parts) else None


@cache
def _media_type(own: str) -> str:
    """The media type of an ending, "compressed" for what is packed; "" if it is not known."""
    kind, packing = _types.guess_type(f"a{own}")
    return "compressed" if packing else kind or ""
