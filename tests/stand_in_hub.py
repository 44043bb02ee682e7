"""A local server that answers what huggingface_hub asks of the hub, for repositories in memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from running_server import running_server

LARGE = 1000
"""Bytes from which a file is in large-file storage, whose checksum is a sha256."""

Files = Mapping[str, bytes]
"""Name -> bytes."""


@dataclass
class StandInHub:
    """Repositories, `models/ID` or `datasets/ID`: their files by branch.

    gated: those whose terms have not been accepted. cuts: bytes after which the first answer with a
    file breaks off. spoilt: files of which the first answer has wrong bytes. asked: each request
    for a file's bytes, with its range. endpoint: where nobody answers, until `serving`.
    """

    repositories: Mapping[str, Mapping[str, Files]]
    gated: Collection[str] = ()
    cuts: dict[str, int] = field(default_factory=dict)
    spoilt: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = "http://127.0.0.1:9"

    def files(self, repository: str, revision: str) -> Files:
        """Those of a branch or commit."""
        if repository in self.gated:
            raise RefusedError("GatedRepo")
        if repository not in self.repositories:
            raise RefusedError("RepoNotFound")
        for branch, files in self.repositories[repository].items():
            if revision in (branch, commit_of(files)):
                return files
        raise RefusedError("RevisionNotFound")

    def downloaded(self) -> set[str]:
        """The names of the files whose bytes were asked for."""
        return {name for name, _ in self.asked}

    def run(self, home: Path, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a Python program that knows no other hub and keeps its copies under `home`."""
        environment = {
            **os.environ,
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "HF_TOKEN": "",
        }
        command = [sys.executable, "-c", program, *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


class RefusedError(Exception):
    """The hub's code for why it does not answer."""


def commit_of(files: Files) -> str:
    """Another for other files."""
    return hashlib.sha1(b"".join(n.encode() + b for n, b in sorted(files.items()))).hexdigest()


def folder_bytes(folder: Path) -> dict[str, bytes]:
    """All files of a folder, as a repository has them."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def serving(hub: StandInHub) -> Iterator[StandInHub]:
    """The hub, running at its endpoint."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    with running_server(server):
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def do_GET(self) -> None:
        # Unquoted part by part: a revision such as refs/pr/3 is one of them.
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[0] not in ("api", "datasets"):
            parts = ["models", *parts]
        try:
            match parts:
                case ["api", kind, owner, name, *rest]:
                    self._about(f"{kind}/{owner}/{name}", *rest)
                case [kind, owner, name, "resolve", revision, *file]:
                    self._file(f"{kind}/{owner}/{name}", revision, "/".join(file))
                case _:
                    raise RefusedError("RepoNotFound")
        except RefusedError as error:
            code = str(error)
            status = 403 if code == "GatedRepo" else 404
            self._send(status, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_arguments: object) -> None:
        """Says nothing."""

    def _about(self, repository: str, what: str = "revision", revision: str = "main") -> None:
        files = self.hub.files(repository, revision)
        entries = [_entry(name, data) for name, data in files.items()]
        about = {"id": repository.split("/", 1)[1], "sha": commit_of(files), "siblings": entries}
        content = json.dumps(entries if what == "tree" else about).encode()
        self._send(200, {"Content-Type": "application/json"}, content)

    def _file(self, repository: str, revision: str, name: str) -> None:
        files = self.hub.files(repository, revision)
        if name not in files:
            raise RefusedError("EntryNotFound")
        data = files[name]
        headers = {"X-Repo-Commit": commit_of(files), "ETag": f'"{_checksum(data)}"'}
        if self.command == "HEAD":
            self._send(200, headers, data)
            return
        asked = self.headers.get("Range", "")
        self.hub.asked.append((name, asked))
        if name in self.hub.spoilt:
            self.hub.spoilt.remove(name)
            data = bytes(len(data))
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._send(206 if asked else 200, headers, data[start:], self.hub.cuts.pop(name, None))

    def _send(
        self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


def _checksum(data: bytes) -> str:
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A file, in the words of a repository's description and in those of its tree."""
    mark, size = _checksum(data), len(data)
    entry = {"type": "file", "path": name, "rfilename": name, "size": size}
    if size >= LARGE:
        pointer = hashlib.sha1(mark.encode()).hexdigest()
        lfs = {"oid": mark, "sha256": mark, "size": size, "pointerSize": 130}
        return {**entry, "oid": pointer, "blobId": pointer, "lfs": lfs}
    return {**entry, "oid": mark, "blobId": mark}
