"""Checkpoints of a long computation at the root: what it needs to go on after a crash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from diffmining_core.store.roots import Root, explained


class RootCheckpoints:
    """The newest checkpoint below a folder of the root.

    A checkpoint's files lie in `step-<step>/`; it counts once `step-<step>.json`, which names them
    with their sha256, is written. Older ones go when a newer one is complete.
    """

    def __init__(self, root: Root, folder: str, every: int) -> None:
        self.root, self.folder, self.every = root, folder, every

    def latest(self, into: Path) -> int | None:
        """Fetch the newest intact checkpoint's files and return its step; None if there is none."""
        for step in sorted(self._steps(), reverse=True):
            files: dict[str, str] = json.loads(self.root.read_bytes(self._marker(step)))
            if all(self._fetch(step, name, into, files[name]) for name in files):
                return step
        return None

    def keep(self, step: int, folder: Path) -> None:
        """Store the files of `folder` as the checkpoint after `step` steps."""
        older = self._steps()
        files = {}
        with explained(self.root.url):
            for path in sorted(folder.iterdir()):
                target = self.root.path_of(f"{self.folder}/{self._name(step)}/{path.name}")
                self.root.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self.root.fs.put_file(str(path), target)
                files[path.name] = _sha256(path)
        self.root.write_bytes(self._marker(step), json.dumps(files).encode())
        for old in older - {step}:
            self._drop(old)

    def remove(self) -> None:
        """Remove all checkpoints: the computation is finished."""
        for step in self._steps():
            self._drop(step)

    def _steps(self) -> set[int]:
        names = self.root.names(self.folder)
        return {int(name[5:-5]) for name in names if name.endswith(".json")}

    def _fetch(self, step: int, name: str, into: Path, sha256: str) -> bool:
        source = self.root.path_of(f"{self.folder}/{self._name(step)}/{name}")
        try:
            with explained(self.root.url):
                self.root.fs.get_file(source, str(into / name))
        except FileNotFoundError:
            return False
        return _sha256(into / name) == sha256

    def _drop(self, step: int) -> None:
        with explained(self.root.url):
            self.root.fs.rm_file(self.root.path_of(self._marker(step)))
            folder = self.root.path_of(f"{self.folder}/{self._name(step)}")
            if self.root.fs.exists(folder):
                self.root.fs.rm(folder, recursive=True)

    def _marker(self, step: int) -> str:
        return f"{self.folder}/{self._name(step)}.json"

    @staticmethod
    def _name(step: int) -> str:
        return f"step-{step:09d}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
