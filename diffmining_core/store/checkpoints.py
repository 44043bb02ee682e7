"""Checkpoints of a long computation at the root: what it needs to go on after a crash."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from uuid import uuid4

from pydantic_core import from_json

from diffmining_core.store.roots import Root, checked_name, explained


class RootCheckpoints:
    """The newest checkpoints below a folder of the root, or all of them.

    A checkpoint's files lie in `step-<step>-<uuid>/`; it counts once `step-<step>-<uuid>.json`,
    which names them with their sha256, is written. When it is complete, others of its step go, and
    older ones until `kept` steps are left (None: all stay). Several processes may keep, fetch and
    remove at once: each writes only what is its own, and one that vanishes under another's hands
    is passed over.
    """

    def __init__(self, root: Root, folder: str, kept: int | None = 1) -> None:
        self.root, self.folder, self.kept = root, folder, kept

    def latest(self, into: Path) -> int | None:
        """Fetch the newest intact checkpoint's files and return its step; None if there is none."""
        return self._fetch_newest(into, None)

    def steps(self) -> list[int]:
        """The steps that have a checkpoint, in order."""
        return sorted({_step(name) for name in self._complete()})

    def fetch(self, step: int, into: Path) -> None:
        """Fetch the files of one step; FileNotFoundError if it has no intact checkpoint."""
        if self._fetch_newest(into, step) is None:
            raise FileNotFoundError(f"{self.root.url_of(self.folder)}: step {step} is not there")

    def _fetch_newest(self, into: Path, step: int | None) -> int | None:
        unusable: set[str] = set()
        # A new listing for each try: what has just vanished may have made way for a newer one.
        while names := {
            name for name in self._complete() - unusable if step in (None, _step(name))
        }:
            newest = max(names)
            if self._fetch(newest, into):
                return _step(newest)
            unusable.add(newest)
        return None

    def keep(self, step: int, folder: Path) -> None:
        """Store the files of `folder` as the checkpoint after `step` steps."""
        superseded = self._superseded(step)
        files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
        name = f"step-{step:09d}-{uuid4().hex}"
        try:
            for file in files:
                self.root.write_file(f"{self.folder}/{name}/{file}", folder / file)
            self.root.write_bytes(self._marker(name), json.dumps(files).encode())
        except (FileNotFoundError, FileExistsError):
            return  # another process, which is done, removed the local folder as we filled it
        for old in superseded:
            self._drop(old)

    def remove(self) -> None:
        """Remove all checkpoints, half written ones too: the computation is finished."""
        for name in {name.removesuffix(".json") for name in self.root.names(self.folder)}:
            self._drop(name)

    def _superseded(self, step: int) -> set[str]:
        """What goes when a checkpoint of `step` is complete."""
        older = {name for name in self._complete() if _step(name) <= step}
        steps = sorted({_step(name) for name in older} - {step}, reverse=True)
        stay = set(steps if self.kept is None else steps[: self.kept - 1])
        return {name for name in older if _step(name) not in stay}

    def _complete(self) -> set[str]:
        names = self.root.names(self.folder)
        return {name[:-5] for name in names if re.fullmatch(r"step-\d{9}-[0-9a-f]{32}\.json", name)}

    def _fetch(self, name: str, into: Path) -> bool:
        """Whether all files came as they were written; if not, none of them stays."""
        files = self._files(name)
        intact = bool(files) and all(
            self._fetch_file(f"{self.folder}/{name}/{file}", into / file) == files[file]
            for file in files
        )
        if not intact:
            for file in files:
                (into / file).unlink(missing_ok=True)
        return intact

    def _files(self, name: str) -> dict[str, str]:
        """File name -> sha256 as the marker has it; nothing if it is gone or no marker."""
        try:
            files = from_json(self.root.read_bytes(self._marker(name)))
            if all("/" not in checked_name(file) for file in files):
                return {file: str(files[file]) for file in files}
        except (FileNotFoundError, ValueError, TypeError, AttributeError):
            pass
        return {}

    def _fetch_file(self, rel: str, target: Path) -> str | None:
        """The sha256 of what came, None if there is no such file."""
        digest = hashlib.sha256()
        try:
            with explained(str(target.parent)), target.open("wb") as file:
                for block in self.root.blocks(rel):
                    digest.update(block)
                    file.write(block)
        except FileNotFoundError:
            return None
        return digest.hexdigest()

    def _drop(self, name: str) -> None:
        self.root.remove(self._marker(name))
        self.root.remove(f"{self.folder}/{name}")

    def _marker(self, name: str) -> str:
        return f"{self.folder}/{name}.json"


def _step(name: str) -> int:
    return int(name.split("-")[1])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
