"""An empty folder on each kind of storage: local disk, memory, and S3 (moto's server here)."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest


@pytest.fixture(params=["local", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a folder with nothing in it."""
    if request.param == "local":
        (tmp_path / "data set #1").mkdir()
        return str(tmp_path / "data set #1")
    if request.param == "memory":
        return f"memory://{uuid4().hex}/data"
    return f"s3://{request.getfixturevalue('bucket')}/{uuid4().hex}"
