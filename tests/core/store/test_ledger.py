from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest

from diffmining_core.errors import InputError
from diffmining_core.store import roots
from diffmining_core.store.ledger import (
    Attempt,
    CorruptFileError,
    Manifest,
    complete,
    file_url,
    local_folder,
    published,
    read_bytes,
    read_json,
    read_manifest,
    read_manifests,
    read_table,
    retract,
    stages,
    verify,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit

THREADS = 12

UNIT = Unit("patches", "1", ("maps",), {"size": 64, "range": (0.1, 0.7)})

TABLE = pa.table({"image_id": ["a", "b"], "y": pa.array([1, None], pa.int32())})


def produce(attempt: Attempt) -> None:
    attempt.write_table("patches.parquet", TABLE)
    attempt.write_json("notes/summary.json", {"ü": [1, None, 0.25]})
    attempt.write_bytes("empty", b"")
    attempt.counts["patches"] = 2
    attempt.facts["base_rate"] = 0.085


def never(attempt: Attempt) -> None:
    raise AssertionError("a finished unit is not made again")


def tamper(root: Root, manifest: Manifest, name: str, data: bytes | None) -> None:
    """What a bad disk or a careless hand may do."""
    path = root.path_of(f"{manifest.attempt}/{name}")
    if data is None:
        root.fs.rm(path)
    else:
        root.fs.pipe_file(path, data)


def test_a_finished_unit_is_found_and_not_made_again(root: Root) -> None:
    assert read_manifest(root, "patches", UNIT.key) is None
    made = complete(root, UNIT, produce, device="cuda:0")
    assert complete(root, UNIT, never) == made
    assert read_manifest(root, "patches", UNIT.key) == made
    assert published(root, "patches") == {UNIT.key}
    assert read_manifests(root, "patches") == [made]
    assert published(root, "clusters") == set()
    assert read_manifests(root, "clusters") == []


def test_the_manifest_tells_what_was_made_from_what_and_how(root: Root) -> None:
    manifest = complete(root, UNIT, produce, device="cuda:0")
    assert (manifest.stage, manifest.key, manifest.algo) == ("patches", UNIT.key, "1")
    assert manifest.inputs == ("maps",)
    assert manifest.parameters == {"size": 64, "range": [0.1, 0.7]}
    assert manifest.counts == {"patches": 2}
    assert manifest.facts == {"base_rate": 0.085}
    assert manifest.attempt.startswith(f"patches/{UNIT.key}/attempt-")
    assert set(manifest.files) == {"patches.parquet", "notes/summary.json", "empty"}
    assert manifest.files["empty"] == {
        "bytes": 0,
        "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    }
    assert manifest.device == "cuda:0"
    assert manifest.versions["pyarrow"] == pa.__version__
    assert manifest.seconds >= 0
    assert manifest.created.endswith("+00:00")


def test_how_and_when_a_unit_was_made_does_not_enter_its_key(root: Root) -> None:
    cpu = complete(root, UNIT, produce, device="cpu")
    assert replace(cpu, device="cuda:0", seconds=9.0, versions={}, created="").key == UNIT.key
    assert complete(root, UNIT, never, device="cuda:0") == cpu


def test_stored_files_are_read_back(root: Root) -> None:
    manifest = complete(root, UNIT, produce)
    assert read_table(root, manifest, "patches.parquet").equals(TABLE)
    assert read_json(root, manifest, "notes/summary.json") == {"ü": [1, None, 0.25]}
    assert read_bytes(root, manifest, "empty") == b""
    with fsspec.open(file_url(root, manifest, "notes/summary.json"), "rb") as file:
        assert json.load(file) == {"ü": [1, None, 0.25]}
    verify(root, manifest)
    for read in (read_bytes, read_table, read_json, file_url):
        with pytest.raises(KeyError, match=r"has no file .other.*patches.parquet"):
            read(root, manifest, "other")


def test_tables_are_compressed_with_zstd(root: Root) -> None:
    manifest = complete(root, UNIT, produce)
    data = pa.BufferReader(read_bytes(root, manifest, "patches.parquet"))
    column = pa.parquet.ParquetFile(data).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


@pytest.mark.parametrize("name", ["../out", "/out", "a//b", "", "a/../b"])
def test_no_name_leads_out_of_the_attempt(root: Root, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        Attempt(root, UNIT).write_bytes(name, b"")


def test_a_name_is_written_once(root: Root) -> None:
    attempt = Attempt(root, UNIT)
    attempt.write_bytes("a", b"1")
    with pytest.raises(ValueError, match="a is written twice"):
        attempt.write_json("a", 1)
    assert attempt.files["a"]["bytes"] == 1


def test_of_twelve_makers_one_wins_and_all_get_its_result(root: Root) -> None:
    all_made = threading.Barrier(THREADS)

    def race(thread: int) -> Manifest:
        def produce(attempt: Attempt) -> None:
            attempt.write_bytes("who", b"%d" % thread)
            attempt.counts["who"] = thread
            all_made.wait()

        return complete(root, UNIT, produce)

    with ThreadPoolExecutor(THREADS) as pool:
        manifests = list(pool.map(race, range(THREADS)))
    winner = read_manifest(root, "patches", UNIT.key)
    assert winner is not None
    assert manifests == [winner] * THREADS
    assert read_bytes(root, winner, "who") == b"%d" % winner.counts["who"]
    assert root.names("manifests/patches") == [f"{UNIT.key}.json"]
    assert len(root.names(f"patches/{UNIT.key}")) == THREADS  # the others' are for `gc`


def test_a_failed_attempt_leaves_no_manifest_and_the_next_one_completes(root: Root) -> None:
    def fail(attempt: Attempt) -> None:
        produce(attempt)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        complete(root, UNIT, fail)
    assert published(root, "patches") == set()
    assert read_table(root, complete(root, UNIT, produce), "patches.parquet").equals(TABLE)


KILLED = """
import os, signal, sys
from diffmining_core.store.ledger import complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit

def produce(attempt):
    attempt.write_bytes("first", b"1" * 1000)
    os.kill(os.getpid(), signal.SIGKILL)

complete(open_root(sys.argv[1]), Unit("patches", "1", ("maps",), {}), produce)
"""


def test_a_killed_process_leaves_nothing_done_and_the_next_one_completes(root: Root) -> None:
    if root.url.startswith("memory:"):
        pytest.skip("memory dies with its process")
    code = subprocess.run(
        [sys.executable, "-c", KILLED, root.url], cwd=Path(__file__).parents[3], check=False
    ).returncode
    assert code == -signal.SIGKILL
    unit = Unit("patches", "1", ("maps",), {})
    assert len(root.names(f"patches/{unit.key}")) == 1  # it did begin
    assert published(root, "patches") == set()
    assert read_manifest(root, "patches", unit.key) is None
    manifest = complete(root, unit, produce)
    assert published(root, "patches") == {unit.key}
    verify(root, manifest)


def test_a_manifest_half_written_by_a_crash_counts_for_nothing(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    root.write_new(f"manifests/patches/.{UNIT.key}.json.0f3a", b'{"stage": "pat')
    assert published(root, "patches") == set()
    assert read_manifests(root, "patches") == []
    assert complete(root, UNIT, produce).counts == {"patches": 2}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_fails_the_unit_in_one_sentence(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))

    def fill_up(attempt: Attempt) -> None:
        attempt.write_bytes("a", b"1")
        (tmp_path / attempt.folder / "b").symlink_to("/dev/full")
        attempt.write_bytes("b", b"1")

    with pytest.raises(InputError, match=r"no space is left.*what is finished is kept"):
        complete(root, UNIT, fill_up)
    assert published(root, "patches") == set()


@pytest.mark.parametrize(("data", "says"), [(b"x", "is corrupt"), (None, "is missing")])
def test_a_file_that_storage_did_not_keep_is_not_published(
    root: Root, data: bytes | None, says: str
) -> None:
    def produce_badly(attempt: Attempt) -> None:
        produce(attempt)
        path = root.path_of(f"{attempt.folder}/patches.parquet")
        root.fs.rm(path)
        if data is not None:
            root.fs.pipe_file(path, data)

    with pytest.raises(OSError, match=f"did not keep.*patches.parquet {says}"):
        complete(root, UNIT, produce_badly)
    assert published(root, "patches") == set()


def test_a_corrupt_file_is_named_with_what_was_expected_and_what_came(root: Root) -> None:
    manifest = complete(root, UNIT, produce)
    tamper(root, manifest, "notes/summary.json", b"{}")
    for read in (lambda: verify(root, manifest), lambda: read_json(root, manifest, NOTES)):
        with pytest.raises(CorruptFileError) as caught:
            read()
        message = str(caught.value)
        assert root.url_of(f"{manifest.attempt}/{NOTES}") in message
        assert manifest.files[NOTES]["sha256"] in message
        assert "got 2 bytes with sha256 44136fa355b3678a1146ad16f7e8649e94fb4fc2" in message
        assert "run again to make its unit anew" in message
        assert (caught.value.stage, caught.value.key) == ("patches", UNIT.key)
    tamper(root, manifest, NOTES, None)
    for read in (lambda: verify(root, manifest), lambda: read_json(root, manifest, NOTES)):
        with pytest.raises(CorruptFileError, match=r"summary.json is missing"):
            read()


NOTES = "notes/summary.json"


@pytest.mark.parametrize(
    "body", [b"", b'{"stage": "pat', b"[]", b'{"stage": "patches"}', b'{"format": 99}']
)
def test_a_manifest_that_cannot_be_read_is_named(root: Root, body: bytes) -> None:
    rel = f"manifests/patches/{UNIT.key}.json"
    root.write_new(rel, body)
    for read in (
        lambda: read_manifest(root, "patches", UNIT.key),
        lambda: read_manifests(root, "patches"),
        lambda: complete(root, UNIT, never),
    ):
        with pytest.raises(
            CorruptFileError, match=rf"{UNIT.key}.json is not a valid manifest"
        ) as caught:
            read()
        assert (caught.value.stage, caught.value.key) == ("patches", UNIT.key)


def test_a_manifest_of_another_unit_is_none_of_this_one(root: Root) -> None:
    complete(root, UNIT, produce)
    body = root.read_bytes(f"manifests/patches/{UNIT.key}.json")
    root.write_new(f"manifests/patches/{'0' * 32}.json", body)
    with pytest.raises(CorruptFileError, match=f"it belongs to 'patches/{UNIT.key}'"):
        read_manifest(root, "patches", "0" * 32)


def test_a_unit_taken_back_is_made_again_beside_what_was_there(root: Root) -> None:
    first = complete(root, UNIT, produce)
    body = root.read_bytes(f"manifests/patches/{UNIT.key}.json")
    retract(root, "patches", UNIT.key)
    retract(root, "patches", UNIT.key)  # another one was faster
    assert published(root, "patches") == set()
    (kept,) = root.names(f"retracted/patches/{UNIT.key}")
    assert root.read_bytes(f"retracted/patches/{UNIT.key}/{kept}") == body
    second = complete(root, UNIT, produce)
    assert second.attempt != first.attempt
    assert second.files == first.files
    verify(root, first)


def test_a_folder_in_the_place_of_a_manifest_is_for_the_user_to_move(tmp_path: Path) -> None:
    root = open_root(str(tmp_path))
    place = tmp_path / f"manifests/patches/{UNIT.key}.json"
    place.mkdir(parents=True)
    assert published(root, "patches") == set()
    for read in (
        lambda: read_manifest(root, "patches", UNIT.key),
        lambda: read_manifests(root, "patches", [UNIT.key]),
        lambda: complete(root, UNIT, never),
    ):
        with pytest.raises(CorruptFileError, match="it is a folder: move it elsewhere"):
            read()
    with pytest.raises(InputError, match="is a folder, but a manifest belongs there; move it"):
        retract(root, "patches", UNIT.key)
    assert place.is_dir()


def test_a_file_cut_short_on_the_way_once_is_read_again(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = complete(root, UNIT, produce)
    expected = read_json(root, manifest, NOTES)
    whole, cuts = Root.read_all, [True]

    def cut_once(self: Root, rels: Sequence[str]) -> list[bytes]:
        cut = cuts.pop() if cuts else False
        return [data[:5] if cut else data for data in whole(self, rels)]

    monkeypatch.setattr(Root, "read_all", cut_once)
    assert read_json(root, manifest, NOTES) == expected
    cuts += [True, True]
    with pytest.raises(CorruptFileError, match="got 5 bytes"):
        read_json(root, manifest, NOTES)


def test_an_error_about_a_corrupt_file_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(CorruptFileError("it is gone", "patches", "0f")))  # noqa: S301 - our own
    assert (str(error), error.stage, error.key) == ("it is gone", "patches", "0f")


def test_the_stages_are_those_with_manifests(root: Root) -> None:
    assert stages(root) == []
    complete(root, UNIT, produce)
    complete(root, Unit("clusters", "1", (), {}), produce)
    assert stages(root) == ["clusters", "patches"]


def test_manifests_come_in_the_order_of_their_keys(root: Root) -> None:
    units = [Unit("patches", "1", (str(i),), {}) for i in range(5)]
    made = {unit.key: complete(root, unit, produce) for unit in units}
    complete(root, Unit("clusters", "1", (), {}), produce)
    assert published(root, "patches") == set(made)
    assert read_manifests(root, "patches") == [made[key] for key in sorted(made)]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "unet" / "weights.safetensors").write_bytes(bytes(3 * 10**6))
    (folder / "unet" / "link.txt").symlink_to(folder / "model_index.json")
    return folder


def store(model: Path) -> Callable[[Attempt], None]:
    def produce(attempt: Attempt) -> None:
        attempt.write_folder(model, "model")
        attempt.write_folder(model / "unet")
        attempt.write_bytes("modelled", b"")

    return produce


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_comes_back_as_it_was(
    root: Root, model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "BLOCK", 10**6)  # so that the weights take several blocks
    manifest = complete(root, UNIT, store(model))
    assert set(manifest.files) == {
        "model/model_index.json",
        "model/unet/link.txt",
        "model/unet/weights.safetensors",
        "link.txt",
        "weights.safetensors",
        "modelled",
    }
    folder = local_folder(root, manifest, "model")
    assert contents(folder) == contents(model)
    assert contents(local_folder(root, manifest, "model/unet")) == contents(model / "unet")
    if root.local("x"):
        assert folder == root.local(f"{manifest.attempt}/model")
        assert not cache.exists()
    else:
        root.fs.rm(root.path, recursive=True)
        assert local_folder(root, manifest, "model") == folder  # from the cache
        assert not [p for p in cache.rglob("*") if p.name.startswith(".")]
    with pytest.raises(KeyError, match="has no file under 'mode'"):
        local_folder(root, manifest, "mode")


def test_a_corrupt_download_does_not_enter_the_cache(root: Root, model: Path, cache: Path) -> None:
    if root.local("x"):
        pytest.skip("nothing is downloaded")
    manifest = complete(root, UNIT, store(model))
    tamper(root, manifest, "model/unet/weights.safetensors", bytes(10))
    with pytest.raises(CorruptFileError, match=r"weights.safetensors is corrupt"):
        local_folder(root, manifest, "model")
    assert contents(cache) == {}


def test_a_model_damaged_on_local_disk_is_not_handed_out(tmp_path: Path, model: Path) -> None:
    root = open_root(str(tmp_path / "root"))
    manifest = complete(root, UNIT, store(model))
    tamper(root, manifest, "model/unet/weights.safetensors", b"\1" + bytes(3 * 10**6 - 1))
    with pytest.raises(CorruptFileError, match=r"weights.safetensors is corrupt"):
        local_folder(root, manifest, "model")


def test_twelve_readers_share_one_download(root: Root, model: Path, cache: Path) -> None:
    manifest = complete(root, UNIT, store(model))
    with ThreadPoolExecutor(THREADS) as pool:
        folders = set(pool.map(lambda _: local_folder(root, manifest, "model"), range(THREADS)))
    assert len(folders) == 1
    assert contents(folders.pop()) == contents(model)


def test_an_empty_folder_is_refused(root: Root, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no file to store"):
        Attempt(root, UNIT).write_folder(tmp_path / "empty", "model")
