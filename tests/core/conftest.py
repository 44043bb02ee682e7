from __future__ import annotations

from collections.abc import Iterator

import pytest
from s3_servers import S3Server, moto_server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Moto's S3 server with a bucket `results`."""
    with moto_server() as server:
        server.make_bucket("results")
        yield server


@pytest.fixture
def bucket(moto: S3Server) -> Iterator[str]:
    """A bucket at moto's server, which s3:// means during the test."""
    with moto.used():
        yield "results"
