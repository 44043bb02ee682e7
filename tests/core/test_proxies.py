from __future__ import annotations

import os

import pytest

from diffmining_core.proxies import never_proxy_loopback

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.mark.parametrize(
    ("given", "excluded"),
    [
        ({}, None),
        ({"no_proxy": "a.example"}, "a.example"),
        ({"HTTP_PROXY": "http://proxy:1"}, "localhost,127.0.0.1,::1"),
        ({"all_proxy": "http://proxy:1", "no_proxy": ""}, "localhost,127.0.0.1,::1"),
        (
            {"https_proxy": "http://proxy:1", "NO_PROXY": "a.example, localhost"},
            "a.example,localhost,127.0.0.1,::1",
        ),
        ({"http_proxy": "http://proxy:1", "no_proxy": "*"}, "*"),
    ],
)
def test_this_machine_is_excluded_where_there_is_a_proxy(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], excluded: str | None
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for _ in range(2):
        never_proxy_loopback()
        assert (os.environ.get("no_proxy") or os.environ.get("NO_PROXY")) == excluded
