"""A web server on 127.0.0.1 that serves images, and does to them what servers do."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from running_server import running_server
from written_images import photo

PHOTO = photo(1)


class ImageServer(ThreadingHTTPServer):
    """What each path does is said in `Handler`; `asked` counts requests by path."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()
        self.connections = 0
        self.headers: dict[str, Any] = {}
        self.ended = threading.Event()
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that break off are what is tested."""


class Handler(BaseHTTPRequestHandler):
    server: ImageServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.asked[parts.path] += 1
        self.server.headers = dict(self.headers)
        kind, _, rest = parts.path.strip("/").partition("/")
        if kind == "status":
            self.answer(int(rest), b"", {"Retry-After": asked["after"]} if "after" in asked else {})
        elif kind == "busy" and self.server.asked[parts.path] <= int(asked["times"]):
            self.answer(429, b"", {"Retry-After": asked["after"]})
        elif kind == "to":
            self.answer(302, b"", {"Location": unquote(parts.query)})
        elif kind == "circle":
            self.answer(301, b"", {"Location": "/circle/b" if rest == "a" else "/circle/a"})
        elif kind == "headers":
            self.send_response(200)
            self.flush_headers()
            with suppress(OSError):
                while not self.server.ended.wait(0.05):
                    self.wfile.write(b"X")
            self.close_connection = True
        elif kind == "endless":
            self.chunks(bytes(2**16), 0)
        elif kind == "drip":
            self.chunks(b".", 0.05)
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(PHOTO[:500])
            self.close_connection = True
        elif kind == "silent":
            self.server.ended.wait(20)
            self.close_connection = True
        else:
            self.answer(200, PHOTO, {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunks(self, data: bytes, pause: float) -> None:
        """Send the same without end, until the client goes."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(OSError):
            while not self.server.ended.is_set():
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                time.sleep(pause)
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""


@contextmanager
def image_server(certificate: Path | None = None) -> Iterator[ImageServer]:
    """A server that runs; with a certificate and its key in one file, over TLS."""
    server = ImageServer()
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.scheme = "https"
    with running_server(server):
        try:
            yield server
        finally:
            server.ended.set()
