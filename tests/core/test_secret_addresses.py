"""Addresses and messages without their secrets."""

from __future__ import annotations

import logging

import pytest

from diffmining_core.errors import ImageError
from diffmining_core.secrets import (
    cleaned,
    keep_secrets_out_of_logs,
    secrets_kept,
    without_secrets,
)


@pytest.mark.parametrize(
    ("address", "clean"),
    [
        ("https://me:pass@host/a.jpg", "https://host/a.jpg"),
        ("https://token@host/a.jpg", "https://host/a.jpg"),
        ("https://me:pa/s?s@host/a.jpg", "https://host/a.jpg"),
        ("s3://KEY:secret@bucket/a.jpg", "s3://bucket/a.jpg"),
        ("sftp://me:pass@host/a.jpg", "sftp://host/a.jpg"),
        ("https://host/a.jpg?X-Amz-Date=1&X-Amz-Signature=2", "https://host/a.jpg"),
        ("https://host/a.jpg?sv=1&se=2&sr=b&sp=r&sig=3", "https://host/a.jpg"),
        ("https://host/a.jpg?Expires=1&Policy=2&Signature=3&Key-Pair-Id=4", "https://host/a.jpg"),
        ("s3://bucket/a.jpg?X-Amz-Signature=2", "s3://bucket/a.jpg"),
        ("zip://a.jpg::https://me:pass@host/b.zip?token=1", "zip://a.jpg::https://host/b.zip"),
    ],
)
def test_secrets_leave_an_address(address: str, clean: str) -> None:
    assert cleaned(address) == clean
    assert cleaned(clean) == clean
    assert clean != address


@pytest.mark.parametrize(
    "address",
    [
        "/data/what?/me:you@home.jpg",
        "s3://bucket/really?.jpg",
        "abfs://container@account.dfs.core.windows.net/a.jpg",
        "hf://datasets/owner/name@main/a.parquet",
        "https://host:8080/me@2x.jpg",
        "http://[::1]:80/me@2x.jpg",
        "https://host/a.tar#bytes=0-5/a.jpg",
        "sftp://me@host/a.jpg",
        "owner/model@revision",
    ],
)
def test_an_address_without_a_secret_stays_as_it_is(address: str) -> None:
    assert cleaned(address) == address


def test_what_selects_an_image_keeps_two_apart_and_one_the_same() -> None:
    first = cleaned("https://host/image?id=5&token=one")
    assert first == cleaned("https://host/image?token=another&id=5")
    assert first != cleaned("https://host/image?id=6&token=one")
    assert "id" not in first.removeprefix("https://host/image")


@pytest.mark.parametrize(
    "text",
    [
        "404, message='no', url='https://me:pa55@host/a.jpg?k=pa55'",
        "Max retries exceeded with url: /bucket/a.jpg?X-Amz-Signature=pa55 (Caused by",
        "https://host/a.jpg?pa55 is not there",
        "GET //me:pa55@host/x",
    ],
)
def test_secrets_leave_a_message(text: str) -> None:
    assert "pa55" not in without_secrets(text)
    assert "pa55" not in str(ImageError(text))


def test_other_words_stay() -> None:
    text = "is it 1/2? yes, me@host // see https://host/a#b (s3://bucket/a)"
    assert without_secrets(text) == text


@pytest.mark.parametrize("kind", [FileNotFoundError, ConnectionError, OSError])
def test_an_error_stays_one_of_its_kind(kind: type[OSError]) -> None:
    with pytest.raises(kind, match=r"^https://host/a$") as caught, secrets_kept():
        raise kind("https://host/a?k=pa55")
    assert caught.value.__suppress_context__, "a traceback would tell it"


def test_log_records_and_tracebacks_are_cleaned() -> None:
    keep_secrets_out_of_logs()
    try:
        raise RuntimeError("https://me:pa55@host/a")
    except RuntimeError as error:
        record = logging.getLogger("any").makeRecord(
            "any", logging.ERROR, "f.py", 1, "from %s", ("https://host/b?k=pa55",),
            (RuntimeError, error, error.__traceback__),
        )  # fmt: skip
    said = logging.Formatter().format(record)
    assert "https://host/a" in said
    assert "from https://host/b" in said
    assert "pa55" not in said
