"""One root of each kind: local disk, memory, and S3 (moto's server and a real one)."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from diffmining_core.store.roots import Root, open_root


@pytest.fixture(params=["local", "memory", "s3", "rgw"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a place with nothing in it."""
    if request.param == "local":
        return str(tmp_path / "root")
    if request.param == "memory":
        return f"memory://{uuid4().hex}/root"
    fixture = "bucket" if request.param == "s3" else "rgw_bucket"
    return f"s3://{request.getfixturevalue(fixture)}/{uuid4().hex}"


@pytest.fixture
def root(url: str) -> Root:
    return open_root(url)
