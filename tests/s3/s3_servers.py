"""S3 servers of the tests' own on 127.0.0.1: moto's, and a real one (Ceph's RADOS gateway)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

SCRIPT = Path(__file__).parents[2] / "infra" / "s3-server"
MISSING = "radosgw, ceph-mon and ceph-osd are missing: run 'infra/s3-server install' as root"


@dataclass
class S3Server:
    """How to reach a server: its AWS_* variables, and fsspec's clients of it.

    Clients read the environment when they are made and are kept by their arguments alone, so that
    each server needs its own.
    """

    environment: dict[str, str]
    clients: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @contextmanager
    def used(self) -> Iterator[None]:
        """Inside, s3:// means this server, here and for commands started here."""
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("AWS_")]:
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
            patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
            patch.setenv("AWS_CONFIG_FILE", "/nonexistent")
            patch.setattr(fsspec.get_filesystem_class("s3"), "_cache", self.clients)
            yield

    def with_changes(self, **changes: str) -> S3Server:
        """The same server reached in another way, by clients of its own."""
        return S3Server({**self.environment, **changes}, folder=self.folder)

    def make_bucket(self, name: str) -> None:
        """A new bucket, through a client that stays with this server."""
        with self.used():
            fsspec.filesystem("s3").mkdir(name)

    def admin(self, *arguments: str) -> Any:
        """The answer of radosgw-admin."""
        command = ["radosgw-admin", "-c", f"{self.folder}/ceph.conf", "-n", "client.rgw"]
        done = subprocess.run([*command, *arguments], capture_output=True, check=True)
        return json.loads(done.stdout or b"null")


@contextmanager
def moto_server() -> Iterator[S3Server]:
    """Moto's: light, and takes any credentials."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Server(
        {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    )
    server.stop()


@contextmanager
def rgw_server(folder: Path) -> Iterator[S3Server]:
    """Ceph's: real. The test is skipped where its packages are missing."""
    if not all(shutil.which(name) for name in ("radosgw", "ceph-mon", "ceph-osd")):
        pytest.skip(MISSING)
    try:
        started = subprocess.run([SCRIPT, "start", folder], capture_output=True, text=True)
        if started.returncode:
            raise RuntimeError(f"the S3 server did not start:\n{started.stderr}")
        yield S3Server(
            dict(line.split("=", 1) for line in started.stdout.splitlines()), folder=folder
        )
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True)
