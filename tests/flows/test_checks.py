"""What is refused before anything is written."""

from __future__ import annotations

import re
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from written_images import photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.sources import check_source
from flows.checks import check_dataset, check_inputs, check_sources
from flows.cli import app
from flows.parameters import IndexParameters, MineParameters


def test_a_root_in_its_own_dataset_is_refused_and_not_made(tmp_path: Path) -> None:
    put(str(tmp_path), "photos/rome/a.png", photo())
    dataset, root = str(tmp_path / "photos"), tmp_path / "photos" / "mined"
    mined = MineParameters(dataset=dataset, root=str(root), model="tiny")
    indexed = IndexParameters(dataset=dataset, root=str(root))
    for check in (
        partial(check_dataset, indexed),
        partial(check_inputs, mined),
        partial(check_sources, mined),
    ):
        with pytest.raises(InputError, match=r"mined lies in the dataset .*photos, so that"):
            check()
    assert not root.exists()


def test_splits_and_captions_are_refused_before_the_root_is_claimed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        put(str(tmp_path), f"photos/{split}/rome/a.png", photo())
    root = tmp_path / "root"
    with pytest.raises(InputError, match=r"are splits and no labels; give '.*photos/\*' for all"):
        check_dataset(IndexParameters(dataset=str(tmp_path / "photos"), root=str(root)))
    assert not root.exists()


@pytest.mark.parametrize("place", ["http://u:pw@h.example/", "https://h.example/?sig=5ec7e7"])
def test_an_allowed_place_holds_no_secret(place: str) -> None:
    with pytest.raises(InputError, match=r"^allow https?://h\.example/: do not put passwords"):
        IndexParameters(dataset="/data/set", root="/mined", allow=(place,))


def test_a_root_that_ends_with_the_command_is_refused_there(tmp_path: Path) -> None:
    put(str(tmp_path), "photos/rome/a.png", photo())
    words = ["index", "--dataset", f"{tmp_path}/photos", "--root", "memory://gone/with/it"]
    with pytest.raises(InputError, match="memory://gone/with/it is gone when the command ends"):
        app(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("root", ["zip://x::/tmp/x.zip", "ftp://127.0.0.1:1/x"])
def test_a_root_of_another_protocol_is_refused_before_it_is_opened(
    root: str, tmp_path: Path
) -> None:
    put(str(tmp_path), "photos/rome/a.png", photo())
    with pytest.raises(InputError, match="cannot keep results"):
        check_dataset(IndexParameters(dataset=str(tmp_path / "photos"), root=root))


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        ("zip://::/nope.zip", "cannot be opened .No such file or directory"),
        ("ftp://127.0.0.1:1/x", "cannot be opened .Connection refused"),
        ("http://127.0.0.1:1/x.csv", "cannot be reached .Connect call failed"),
        (f"/{300 * 'x'}", "File name too long"),
    ],
)
def test_a_dataset_that_cannot_be_opened_is_refused_in_one_sentence(
    dataset: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"^dataset {re.escape(dataset)}: .*{says}"):
        check_dataset(IndexParameters(dataset=dataset, root=str(tmp_path / "root")))


def test_a_file_that_a_server_does_not_have_is_not_called_unreachable(tmp_path: Path) -> None:
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="there is no such folder or file"):
            check_source(f"http://127.0.0.1:{server.server_port}/x.csv")
        server.shutdown()
