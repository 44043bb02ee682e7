"""Indexing while another process indexes the same dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
from written_images import photo, put

from tasks import index as indexing


def test_shards_that_another_process_publishes_meanwhile_make_no_second_state_of_the_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, root = str(tmp_path / "photos"), str(tmp_path / "root")
    for number in range(4):
        put(dataset, f"red/{number}.png", photo(number))
    first = indexing.index.fn(root, dataset, 2, 0.1)
    # The listing was just before the other process published, the reading of the shards after it.
    monkeypatch.setattr(indexing, "published", lambda *_: set())
    second = indexing.index.fn(root, dataset, 2, 0.1)
    assert second[-1].key == first[-1].key
    assert len(list((tmp_path / "root/manifests/dataset").iterdir())) == 1
