"""A web server on this machine that serves images only to whom they are meant for."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from running_server import running_server


@dataclass
class Guarded:
    """`images` by path. What is asked without a password or a query of `queries` is refused.

    asked: how often each path was asked for.
    """

    images: Mapping[str, bytes]
    password: str
    queries: set[str]
    host: str = ""
    asked: Counter[str] = field(default_factory=Counter)

    def answer(self, path: str, query: str, authorization: str) -> tuple[int, bytes]:
        self.asked[path] += 1
        credentials = base64.b64encode(f"reader:{self.password}".encode()).decode()
        if query not in self.queries and authorization != f"Basic {credentials}":
            return 403, b"<Error>SignatureDoesNotMatch</Error>"
        return (200, self.images[path]) if path in self.images else (404, b"")


@contextmanager
def guarded_images(guarded: Guarded) -> Iterator[Guarded]:
    """The server runs within, at `guarded.host`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = urlsplit(self.path)
            status, body = guarded.answer(
                asked.path, asked.query, self.headers.get("Authorization", "")
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    guarded.host = f"127.0.0.1:{server.server_port}"
    with running_server(server):
        yield guarded
