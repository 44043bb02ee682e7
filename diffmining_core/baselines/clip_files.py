"""Find the files of a whole CLIP model, of images and text, by any name; needs no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.models.fetching import fetched, first_line
from diffmining_core.models.files import chosen_weights, clip_files

ALGO = "clip-1"
"""Version of CLIP's maps and features; here, where planning them needs no torch."""

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class ClipFiles:
    """Where a CLIP model lies, by the name that the user gave it."""

    name: str
    folder: Path

    @property
    def names(self) -> list[str]:
        """The files that loading it reads."""
        return sorted(whole_clip_files(path.name for path in self.folder.iterdir()))

    @property
    def digest(self) -> str:
        """Sha256 hex over their names and bytes, wherever they lie."""
        digest = hashlib.sha256()
        for name in self.names:
            with (self.folder / name).open("rb") as file:
                digest.update(
                    f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode()
                )
        return digest.hexdigest()

    def settings(self, name: str) -> dict[str, Any]:
        """One of its JSON files; InputError if it cannot be read."""
        try:
            found: dict[str, Any] = json.loads((self.folder / name).read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"The CLIP model {self.name} cannot be loaded: its {name} cannot be read "
                f"({first_line(error)}); give a folder that transformers' save_pretrained wrote."
            ) from error
        return found


def find_clip(name: str) -> ClipFiles:
    """The local files of a CLIP model, copied from the hub or a URL if need be.

    InputError if there is none, it has no images' side, or its weights cannot be read without
    unpickling.
    """
    files = ClipFiles(name, fetched(name, "CLIP model", whole_clip_files))
    if (kind := files.settings("config.json").get("model_type")) != "clip":
        raise InputError(
            f"{name} should be a whole CLIP model, of images and text (model_type clip), but is of "
            f"the kind {kind!r}; give one such as openai/clip-vit-large-patch14-336."
        )
    if not chosen_weights(files.names)[1]:
        raise InputError(
            f"The CLIP model {name} should have its weights as safetensors, but has none, and "
            "pickles (.bin) are never read, as they can run any code; give a revision with "
            "safetensors (ID@REVISION), or save it by save_pretrained."
        )
    return files


def whole_clip_files(names: Iterable[str]) -> list[str]:
    """Of all files of a repository those that a CLIP model is read from."""
    everything = list(names)
    return clip_files(everything) + [name for name in everything if name == PREPROCESSOR]
