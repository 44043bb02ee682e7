"""Downloads from a local hub: resumed, checked, of one commit, and refused in one sentence."""

from __future__ import annotations

import io
import json
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from published_layouts import folder_of, write_cardb
from stand_in_hub import StandInHub, commit_of, serving
from written_images import photo

from diffmining_core.errors import InputError
from diffmining_core.recipes.hub import unpack
from flows.download import download, recipes

CARS = "datasets/diff-mining/cardb"

PROGRAM = """
import sys
from pathlib import Path
from diffmining_core.errors import InputError
from flows.download import download
what, folder, *revision = sys.argv[1:]
try:
    download(what, to=Path(folder), revision=revision[0] if revision else None)
except (InputError, OSError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StandInHub]:
    """A hub with CarDB as it is published: the images in a zip file."""
    write_cardb(str(tmp_path / "published"))
    images = sorted((tmp_path / "published" / "train").iterdir())
    photos = {f"train/{path.name}": path.read_bytes() for path in images}
    files = {
        "train.json": (tmp_path / "published" / "train.json").read_bytes(),
        # The client goes on from whole blocks of 10 MB.
        "train.zip": zipped({**photos, "notes.bin": bytes(12_000_000)}),
        "README.md": b"cars",
    }
    with serving(StandInHub({CARS: {"main": files}})) as running:
        yield running


def run(hub: StandInHub, tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return hub.run(tmp_path / "home", PROGRAM, *words)


def test_a_dataset_comes_whole_is_unpacked_and_checked_and_not_fetched_again(
    hub: StandInHub, tmp_path: Path
) -> None:
    folder = tmp_path / "cars"
    hub.cuts["train.zip"] = 11_000_000
    hub.spoilt.add("train.json")
    ended = run(hub, tmp_path, "cardb", str(folder))
    commit = commit_of(hub.repositories[CARS]["main"])
    assert ended.returncode == 1, ended.stderr  # 3 images are not the published 10,130
    assert f"diff-mining/cardb at commit {commit} is in {folder}: 3 files" in ended.stdout
    assert "all: 3 images of 10,130 published, 2 labels of 8 published" in ended.stdout
    assert "1 cannot be used: its year 'unknown' is no number" in ended.stdout
    assert "1 left out: named in the table, but not there" in ended.stdout
    for name, data in hub.repositories[CARS]["main"].items():
        assert (folder / name).read_bytes() == data
    assert (folder / "train" / "a.jpg").read_bytes() == photo(0)
    ranges = [asked for name, asked in hub.asked if name == "train.zip"]
    assert ranges[0] == ""
    assert ranges[1].startswith("bytes=") and ranges[1] != "bytes=0-", "it is gone on with"
    assert [name for name, _ in hub.asked].count("train.json") == 2, "it was spoilt once"

    hub.asked.clear()
    assert run(hub, tmp_path, "cardb", str(folder)).returncode == 1
    assert hub.asked == []


def test_a_folder_keeps_its_commit_and_says_so(hub: StandInHub, tmp_path: Path) -> None:
    folder = tmp_path / "cars"
    run(hub, tmp_path, "cardb", str(folder))
    old = hub.repositories[CARS]["main"]
    new = {**old, "README.md": b"more cars"}
    hub.repositories = {CARS: {"old": old, "main": new}}
    again = run(hub, tmp_path, "cardb", str(folder))
    assert f"at commit {commit_of(old)}" in again.stdout
    other = run(hub, tmp_path, "cardb", str(folder), "main")
    assert other.returncode == 1
    assert other.stderr.strip().endswith(
        f"InputError: {folder} holds commit {commit_of(old)} of diff-mining/cardb, and main is "
        f"{commit_of(new)}; leave out --revision to go on with the first, or give another folder "
        "with --to"
    )
    record = json.loads((folder / ".diffmining-download.json").read_text())
    assert record["commit"] == commit_of(old)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("GatedRepo", "InputError: diff-mining/cardb is gated: ask for access at https://"),
        ("RepoNotFound", "InputError: there is no dataset diff-mining/cardb on the hub, or it is"),
        ("RevisionNotFound", "InputError: diff-mining/cardb has no revision v9; give a branch"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: StandInHub, tmp_path: Path, code: str, says: str
) -> None:
    if code == "GatedRepo":
        hub.gated = {CARS}
    elif code == "RepoNotFound":
        hub.repositories = {}
    ended = run(hub, tmp_path, "cardb", str(tmp_path / "cars"), "v9")
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith(says)
    assert "Traceback" not in ended.stderr


def test_without_a_network_it_says_so(tmp_path: Path) -> None:
    ended = run(StandInHub({}), tmp_path, "models/cardb", str(tmp_path / "cars"))
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("ConnectionError: the hub cannot be reached or does not answer (")
    assert not (tmp_path / "cars").exists()


def test_a_model_comes_into_a_folder(tmp_path: Path) -> None:
    files = {"model_index.json": b"{}", "unet/model.safetensors": bytes(range(256)) * 20}
    with serving(StandInHub({"models/diff-mining/ftt": {"main": files}})) as hub:
        ended = run(hub, tmp_path, "models/ftt", str(tmp_path / "faces"))
    assert ended.returncode == 0, ended.stderr
    assert f"Use it with --model {tmp_path / 'faces'}" in ended.stdout
    for name, data in files.items():
        assert (tmp_path / "faces" / name).read_bytes() == data


def test_data_on_request_are_asked_for_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    download("places", to=tmp_path / "places")
    said = capsys.readouterr().out
    assert "Ask for the data at http://places2.csail.mit.edu/download.html" in said
    assert "categories_places365.txt" in said
    folder = folder_of("places", tmp_path)
    with pytest.raises(SystemExit) as ended:
        download("places", to=Path(folder))
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "mined: 6 images of 36,500 published, 3 labels of 365 published\n" in said
    assert "1 cannot be used: there is no such image" in said
    assert "train: 3 images of 1,803,460 published, 3 labels\n" in said
    (tmp_path / "places" / "places365_val.txt").unlink()
    with pytest.raises(SystemExit):
        download("places", to=Path(folder))
    assert "mined: nothing can be used: dataset" in capsys.readouterr().out


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    recipes()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["cardb", "ftt", "g3", "places", "xray"]
    recipes("xray")
    said = capsys.readouterr().out
    for text in ("xray.toml", "Chest X-Ray with {label}.", "512 px", "nihcc.app.box.com"):
        assert text in said
    with pytest.raises(InputError, match="there is no recipe"):
        recipes("none")


@pytest.mark.parametrize(
    "name", ["../out.txt", "/out.txt", "a/../../out.txt", "..\\out.txt", "C:/x"]
)
def test_no_file_of_an_archive_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"in.txt": b"in", name: b"out"}))
    with pytest.raises(InputError, match="would be written outside the folder"):
        unpack(tmp_path / "x.zip", tmp_path / "in")
    assert not (tmp_path / "in").exists()
    assert not (tmp_path / "out.txt").exists()


def test_an_archive_is_unpacked_once_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped({"a/1.txt": b"one", "a/2.txt": b"two"}))
    seen: list[int] = []
    assert unpack(tmp_path / "x.zip", tmp_path / "in", lambda: seen.append(1)) == len(seen) == 2
    before = (tmp_path / "in" / "a" / "1.txt").stat().st_mtime_ns
    (tmp_path / "in" / "a" / "2.txt").write_bytes(b"tw")  # it was cut short
    unpack(tmp_path / "x.zip", tmp_path / "in")
    assert (tmp_path / "in" / "a" / "1.txt").stat().st_mtime_ns == before
    assert (tmp_path / "in" / "a" / "2.txt").read_bytes() == b"two"

    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a").symlink_to(tmp_path)
    with pytest.raises(InputError, match="is a link that leads out of"):
        unpack(tmp_path / "x.zip", tmp_path / "linked")
    (tmp_path / "y.zip").write_bytes(b"PK no zip")
    with pytest.raises(InputError, match="is no readable zip file"):
        unpack(tmp_path / "y.zip", tmp_path / "in")
