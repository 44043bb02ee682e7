"""Requests to this machine go to it directly, whatever proxy the environment names."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def never_proxy_loopback() -> None:
    """Add this machine's names to NO_PROXY, for this process and those that it starts.

    A company's proxy cannot reach the Prefect server or S3 server that listens here. Nothing is set
    where the environment names no proxy: macOS would then not ask its own settings any more.
    """
    names = {name.lower() for name, value in os.environ.items() if value}
    if not names & {"http_proxy", "https_proxy", "all_proxy"}:
        return
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in excluded.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
