"""What the store makes of a faulty network before a real S3 server."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from faulty_proxy import FaultyProxy

from diffmining_core.errors import InputError
from diffmining_core.store import roots
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    complete,
    local_folder,
    published,
    read_bytes,
    read_files,
    read_manifests,
    verify,
)
from diffmining_core.store.maps import RaggedMaps, open_maps_dask, read_maps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit

FaultyNetwork = Callable[..., FaultyProxy]

KINDS = ("500", "503", "reset", "lost", "cut", "held")
HOLD = 1.2
TIMEOUT = 1.0  # enough for an answer on a busy machine
UNITS = 1


def shares(rate: float) -> dict[str, float]:
    """`rate` of all requests go wrong, a twentieth of these by silence, which takes longest."""
    return {kind: rate * (0.05 if kind == "held" else 0.19) for kind in KINDS}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "S3_TIMEOUT", TIMEOUT)
    monkeypatch.setattr(roots, "BLOCK", 10**5)  # so that files take several requests


def opened() -> Root:
    return open_root(f"s3://results/{uuid4().hex}")


def content(name: str, size: int) -> bytes:
    return np.random.default_rng(list(name.encode())).bytes(size)


MAPS = RaggedMaps.pack(
    maps := [np.full((3, 5), i, np.float32) for i in range(20)],
    maps,
    [1.0] * 20,
    ["id"] * 20,
    ["a"] * 20,
    4,
)


def produce(attempt: Attempt) -> None:
    write_maps(attempt, MAPS)
    for name in ("a", "folder/b"):
        attempt.write_bytes(name, content(name, 250_000))
    attempt.write_bytes("empty", b"")


def unit(i: int) -> Unit:
    return Unit("patches", "1", (str(i),), {})


def all_works(root: Root, tmp_path: Path) -> None:
    """A small run: units, their files, maps, folders, listings and checkpoints."""
    manifests = [complete(root, unit(i), produce) for i in range(UNITS)]
    assert published(root, "patches") == {unit(i).key for i in range(UNITS)}
    assert root.names(f"patches/{unit(0).key}") == [manifests[0].attempt.rpartition("/")[2]]
    assert read_manifests(root, "patches") == sorted(manifests, key=lambda m: m.key)
    for manifest in manifests:
        check_unit(root, manifest)
    check_checkpoints(root, tmp_path)


def check_unit(root: Root, manifest: Manifest) -> None:
    verify(root, manifest)
    assert read_files(root, manifest, ["a", "empty"]) == [content("a", 250_000), b""]
    folder = local_folder(root, manifest, "folder")
    assert (folder / "b").read_bytes() == content("folder/b", 250_000)
    np.testing.assert_array_equal(read_maps(root, manifest).values, MAPS.values)
    lazy = open_maps_dask(root, manifest)
    np.testing.assert_array_equal(np.asarray(lazy["values"]), MAPS.values)


def check_checkpoints(root: Root, tmp_path: Path) -> None:
    checkpoints = RootCheckpoints(root, "finetune/key/checkpoints")
    for folder in ("kept", "fetched"):
        (tmp_path / folder).mkdir()
    for step in range(2):
        (tmp_path / "kept" / "weights").write_bytes(content(f"step {step}", 250_000))
        checkpoints.keep(step, tmp_path / "kept")
    assert checkpoints.latest(tmp_path / "fetched") == 1
    assert (tmp_path / "fetched" / "weights").read_bytes() == content("step 1", 250_000)
    checkpoints.remove()
    assert root.names(checkpoints.folder) == []


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_a_faulty_network_changes_no_bytes(
    faulty: FaultyNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    proxy = faulty(shares(rate), seed=4, hold=HOLD)
    all_works(opened(), tmp_path)
    assert proxy.faults.total() > proxy.requests * rate / 2


def test_a_lost_answer_to_a_won_race_still_gives_ones_own_manifest(faulty: FaultyNetwork) -> None:
    proxy = faulty({"lost": 0.5}, seed=1, only="^PUT .*/manifests/")
    root = opened()
    for i in range(4):
        manifest = complete(root, unit(i), lambda attempt: attempt.write_bytes("a", b"mine"))
        assert root.names(f"patches/{unit(i).key}") == [manifest.attempt.rpartition("/")[2]]
    assert proxy.faults["lost"] > 0


def test_makers_whom_the_server_tells_to_try_again_agree_on_a_winner(
    faulty: FaultyNetwork,
) -> None:
    proxy = faulty({"409": 0.6}, seed=1, only="^PUT .*/manifests/")
    root = opened()

    def make(maker: int) -> Manifest:
        return complete(root, unit(0), lambda a: a.write_bytes("who", b"%d" % maker))

    with ThreadPoolExecutor(4) as pool:
        manifests = list(pool.map(make, range(4)))
    assert manifests == [manifests[0]] * 4
    assert proxy.faults["409"] > 1


def test_who_is_always_told_to_try_again_has_not_created_the_file(
    faulty: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "S3_TRIES", 3)
    proxy = faulty({"409": 1.0})
    root = opened()
    assert not root.create_bytes("manifests/a.json", b"1")
    assert proxy.faults["409"] == 3
    assert root.names("manifests") == []


def test_half_a_body_that_looks_whole_is_not_taken_for_the_file(
    faulty: FaultyNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    proxy = faulty({})
    root = opened()
    manifest = complete(root, unit(0), produce)
    proxy.rates = {"short": 1.0}
    for read in (
        lambda: read_bytes(root, manifest, "a"),
        lambda: verify(root, manifest),
        lambda: local_folder(root, manifest, "folder"),
    ):
        with pytest.raises(OSError, match=r"is corrupt|were asked for"):
            read()
    with pytest.raises(ConnectionError, match="0 to 100000 were asked for, 50000 bytes came"):
        next(root.blocks(f"{manifest.attempt}/a"))
    assert not list((tmp_path / "cache").rglob("b"))


def test_credentials_that_expire_in_the_middle_are_said_and_the_next_run_goes_on(
    faulty: FaultyNetwork,
) -> None:
    proxy = faulty({})
    root = opened()
    first = complete(root, unit(0), produce)

    def expire(attempt: Attempt) -> None:
        attempt.write_bytes("a", b"1")
        proxy.refusal = (403, "ExpiredToken")
        attempt.write_bytes("b", b"2")

    with pytest.raises(InputError) as caught:
        complete(root, unit(1), expire)
    assert str(caught.value) == (
        f"{root.url}: the credentials have expired; renew them (AWS_*) and start again: what is "
        "finished is kept"
    )
    proxy.refusal = None
    assert published(root, "patches") == {unit(0).key}
    assert complete(root, unit(0), produce) == first
    verify(root, complete(root, unit(1), produce))


def test_a_network_that_stays_away_is_an_error_that_may_pass(
    faulty: FaultyNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roots, "S3_TRIES", 2)
    proxy = faulty({})
    root = opened()
    root.write_new("a", content("a", 250_000))
    for kind in ("reset", "held", "cut", "500", "503"):
        proxy.rates = {kind: 1.0}
        says = r"the server cannot (be reached|serve now)"
        with pytest.raises(ConnectionError, match=says) as e, roots.explained("/elsewhere"):
            root.read_bytes("a")
        assert str(e.value).startswith(f"{root.url}: ")
        assert "secret" not in str(e.value)
    proxy.rates = {}
    monkeypatch.setattr(roots, "S3_TRIES", 8)
    assert open_root(root.url).read_bytes("a") == content("a", 250_000)


def test_the_answer_that_ended_an_upload_in_parts_may_be_lost(
    faulty: FaultyNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 then says that there is no such upload."""
    monkeypatch.setattr(roots, "S3_TIMEOUT", 30)
    source = tmp_path / "weights"
    source.write_bytes(bytes(105_000_000))  # s3fs sends from 100 MiB on in parts
    proxy = faulty({"forgotten": 1.0}, only="^POST .*uploadId=")
    root = opened()
    root.write_file("weights", source)
    assert root.fs.size(root.path_of("weights")) == 105_000_000
    assert proxy.faults["forgotten"] == 1


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (400, "TokenRefreshRequired", "the credentials have expired; renew them"),
        (400, "InvalidToken", "does not accept these credentials; correct AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "does not accept these credentials"),
        (403, "RequestTimeTooSkewed", "clock differs from the server's by too much; set it right"),
        (403, "QuotaExceeded", "no space is left to write to; free some"),
        (507, "XMinioStorageFull", "no space is left to write to"),
        (507, "InsufficientStorage", "no space is left to write to"),
        (400, "EntityTooLarge", "refuses a file as too large"),
        (400, "IllegalLocationConstraintException", "in another region; set AWS_DEFAULT_REGION"),
        (403, "AccessDenied", r"read but not write here \(AccessDenied\); have it allowed"),
        (403, "AllAccessDisabled", r"read but not write here \(AllAccessDisabled\)"),
        (404, "NoSuchBucket", "there is no such bucket"),
    ],
)
def test_what_a_server_refuses_is_said_with_what_to_do_and_without_its_words(
    faulty: FaultyNetwork, status: int, code: str, says: str
) -> None:
    proxy = faulty({})
    root = opened()
    proxy.refusal = (status, code)
    with pytest.raises(InputError, match=says) as caught:
        root.write_new("a", b"1")
    assert str(caught.value).startswith(f"{root.url}: ")
    assert "secret" not in str(caught.value)
    assert proxy.requests < 10  # trying again would not help
