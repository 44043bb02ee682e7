"""Whatever the bytes of a stored manifest: a valid manifest, or a damaged one that is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffmining_core.store.ledger import (
    Attempt,
    CorruptFileError,
    Manifest,
    complete,
    read_manifest,
)
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit, canonical_json
from diffmining_core.store.verification import holdings

UNIT = Unit("patches", "1", ("maps",), {"size": 64, "t_range": [0.1, 0.7]})
ROOT = open_root("memory://manifests")
PLACE = f"manifests/{UNIT.stage}/{UNIT.key}.json"


def produce(attempt: Attempt) -> None:
    attempt.write_bytes("maps/values", b"values")
    attempt.counts["patches"] = 3
    attempt.facts["title"] = "two “places”"


GOOD = complete(ROOT, UNIT, produce)
STORED: dict[str, Any] = json.loads(ROOT.read_bytes(PLACE))
BODY = ROOT.read_bytes(PLACE)

NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63) - 1, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def read(body: bytes) -> Manifest | None:
    """The manifest stored as `body`, None where it is named as damaged, by `verify` too."""
    ROOT.write_bytes(PLACE, body)
    held = holdings(ROOT)
    try:
        manifest = read_manifest(ROOT, UNIT.stage, UNIT.key)
    except CorruptFileError as error:
        (damage,) = held.damage
        assert (damage.stage, damage.key) == (error.stage, error.key) == (UNIT.stage, UNIT.key)
        assert f"{UNIT.key}.json is not a valid manifest (" in damage.sentence
        damage.sentence.encode()  # it can be printed
        return None
    assert held.damage == []
    assert manifest is not None
    assert held.bytes == sum(record["bytes"] for record in manifest.files.values())
    assert all(file.rel.startswith(f"{UNIT.stage}/{UNIT.key}/attempt-") for file in held.files)
    assert all(isinstance(count, int) for count in manifest.counts.values())
    assert (manifest.algo, manifest.inputs) == (UNIT.algo, UNIT.inputs)
    assert manifest.parameters == UNIT.parameters
    return manifest


@given(st.integers(0, len(BODY) - 1), st.integers(0, len(BODY)), st.binary(max_size=8))
def test_any_bytes_in_place_of_any_of_its_own(start: int, end: int, put: bytes) -> None:
    read(BODY[:start] + put + BODY[end:])


@given(st.sampled_from(sorted(STORED)), VALUES)
def test_any_value_in_any_field(name: str, value: Any) -> None:
    read(json.dumps({**STORED, name: value}).encode(errors="surrogatepass"))


@given(st.sampled_from(["bytes", "sha256"]), VALUES)
def test_any_value_in_the_record_of_a_file(name: str, value: Any) -> None:
    record = {**STORED["files"]["maps/values"], name: value}
    read(json.dumps({**STORED, "files": {"maps/values": record}}).encode(errors="surrogatepass"))


@given(VALUES)
def test_any_json_at_all(value: Any) -> None:
    read(json.dumps(value).encode(errors="surrogatepass"))


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: stored.pop("files"),
        lambda stored: stored.update(more=1),
        lambda stored: stored.update(attempt="../elsewhere/attempt-" + "0" * 32),
        lambda stored: stored.update(attempt="patches/other/attempt-" + "0" * 32),
        lambda stored: stored["files"].update({"../up": stored["files"]["maps/values"]}),
        lambda stored: stored["files"].update({"a": {"bytes": 2**63, "sha256": "0" * 64}}),
        lambda stored: stored["files"].update({"a": {"bytes": 1, "sha256": "0"}}),
        lambda stored: stored["counts"].update(patches=True),
        lambda stored: stored["counts"].update(patches=1.5),
        lambda stored: stored["parameters"].update(size=65),
        lambda stored: stored.update(inputs=["other maps"]),
        lambda stored: stored.update(seconds="1"),
        lambda stored: stored.update(created="yesterday"),
        lambda stored: stored.update(format=2),
    ],
)
def test_what_no_unit_says_of_itself_is_damage(change: Callable[[dict[str, Any]], Any]) -> None:
    stored = json.loads(BODY)
    change(stored)
    assert read(canonical_json(stored)) is None


@pytest.mark.parametrize("body", [b"[" * 100_000, b"\xff\xfe{", b"1" * 10_000, b"\x00" * 100, b""])
def test_what_is_no_json_is_damage(body: bytes) -> None:
    assert read(body) is None


def test_what_was_stored_is_read_as_it_was() -> None:
    assert read(BODY) == GOOD
