from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from diffmining_core.images.reach import OUTSIDE
from diffmining_core.report.shown_addresses import ShownAddresses, without_paths
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import open_run


@pytest.mark.parametrize(
    ("dataset", "uri", "shown"),
    [
        ("/home/me/photos", "/home/me/photos/rome/a b.jpg", "rome/a b.jpg"),
        ("/home/me/photos/*", "/home/me/photos/train/rome/a.jpg", "train/rome/a.jpg"),
        ("/home/me/photos.csv", "/home/me/photos/a.jpg", "photos/a.jpg"),
        ("/home/me/photos.csv", "/mnt/you/a.jpg", "a.jpg"),
        ("/home/me/photos.csv.gz", "/home/me/photos/a.jpg", "photos/a.jpg"),
        ("/home/me/photos.CSV", "/home/me/photos/a.jpg", "photos/a.jpg"),
        ("/home/me/d/*.tar", "/home/me/d/0.tar#bytes=0-5/a.jpg", "0.tar#bytes=0-5/a.jpg"),
        ("s3://bucket/photos", "s3://bucket/photos/rome/a.jpg", "rome/a.jpg"),
        ("/home/me/photos.csv", "https://host/a.jpg?sig=1", "https://host/a.jpg"),
        ("/home/me/photos.csv", "sftp://me@host/x/a.jpg", "a.jpg"),
        ("/d", f"/home/me/mined/index/k/attempt-{32 * 'a'}/images.parquet#row=0/a.jpg", "a.jpg"),
    ],
)
def test_images_are_shown_by_their_place_in_the_dataset(
    dataset: str, uri: str, shown: str, tmp_path: Path
) -> None:
    root = open_root(str(tmp_path / "root"))
    open_run(root, {"dataset": dataset})
    assert ShownAddresses.at(root).address(uri) == shown


def test_tables_and_reasons_hold_no_folders() -> None:
    table = pa.table(
        {
            "uri": ["/home/me/photos/a.jpg"],
            "reason": ["image /home/me/photos/a.jpg: denied: '/home/me/secret/b.jpg' (1/2)"],
        }
    )
    assert ShownAddresses("/home/me/photos").table(table).to_pylist() == [
        {"uri": "a.jpg", "reason": "image a.jpg: denied: 'b.jpg' (1/2)"}
    ]


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (f"{OUTSIDE}/home/bob jones/", f"{OUTSIDE}another folder"),
        (f"{OUTSIDE}/home/bob/", f"{OUTSIDE}another folder"),
        (f"{OUTSIDE}https://cdn.example/", f"{OUTSIDE}https://cdn.example/"),
        ("cannot be read: '/home/bob jones/My Photos/a b.jpg'", "cannot be read: 'a b.jpg'"),
    ],
)
def test_reasons_name_no_folder_elsewhere(reason: str, shown: str) -> None:
    assert ShownAddresses("/data/photos").text(reason) == shown


def test_facts_are_cleaned_at_every_depth() -> None:
    facts = {
        "model": {"base": "/home/me/sd15", "clip": "file:///home/me/clip"},
        "notes": ["from https://u:p@host/a/b"], "k": 3,
    }  # fmt: skip
    assert without_paths(facts) == {
        "model": {"base": "sd15", "clip": "clip"}, "notes": ["from https://host/a/b"], "k": 3,
    }  # fmt: skip
