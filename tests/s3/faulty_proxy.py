"""A faulty network in front of an S3 server, on 127.0.0.1."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

ERRORS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "409": (409, "ConditionalRequestConflict"),
    "501": (501, "NotImplemented"),
    "forgotten": (404, "NoSuchUpload"),
}
"""Faults that are the server's answer: status and code."""


class FaultyProxy:
    """Passes S3 requests on to `endpoint`, but for the share of each kind of fault in `rates`.

    "500", "503": the server fails, or asks to slow down (SlowDown).
    "reset": the connection is reset before the request is passed on.
    "lost": the request is passed on and done, then the connection is reset.
    "forgotten": the request is passed on and done, then answered with NoSuchUpload.
    "held": no answer for `hold` seconds.
    "cut": half of the body comes, with the whole one's length.
    "short": half of the body comes, with its own length.
    "409", "501": conditional PUTs are refused; other requests are not.

    With `refusal` set to a status and a code, that is the answer to all. only: a regular
    expression; requests whose "METHOD path" it does not find are left alone. The draws follow from
    the seed and the order of the requests. `faults` and `requests` count.
    """

    def __init__(
        self,
        endpoint: str,
        rates: Mapping[str, float],
        seed: int = 0,
        hold: float = 5.0,
        only: str = "",
    ) -> None:
        self.target, self.only = urlsplit(endpoint).netloc, only
        self.rates, self.hold = dict(rates), hold
        self.refusal: tuple[int, str] | None = None
        self.faults: Counter[str] = Counter()
        self.requests = 0
        self._draws = random.Random(seed)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _fault(self, request: str, conditional: bool) -> str | None:
        with self._lock:
            self.requests += 1
            if not re.search(self.only, request):
                return None
            drawn, kind = self._draws.random(), None
            for name, rate in self.rates.items():
                if drawn < rate:
                    kind = name
                    break
                drawn -= rate
            if kind in ("409", "501") and not conditional:
                kind = None
            if kind:
                self.faults[kind] += 1
            return kind

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(_Handler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                request = f"{self.command} {self.path}"
                kind = proxy._fault(request, "If-None-Match" in self.headers)
                if proxy.refusal:
                    self.refuse(*proxy.refusal)
                elif kind in ERRORS and kind != "forgotten":
                    self.refuse(*ERRORS[kind])
                elif kind == "reset":
                    self.reset()
                elif kind == "held":
                    proxy._over.wait(proxy.hold)
                    self.reset()
                else:
                    self.pass_on(proxy.target, body, kind)

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client went away, which is its right."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        raise NotImplementedError

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = (  # noqa: N815 - http.server's names
        lambda self: self.answer()
    )

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is said."""

    def pass_on(self, target: str, body: bytes, kind: str | None) -> None:
        server = HTTPConnection(target, timeout=60)
        try:
            server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # Host too: it is signed
                if name.lower() not in ("connection", "expect"):
                    server.putheader(name, value)
            server.endheaders(body)
            answer = server.getresponse()
            content = answer.read()
        finally:
            server.close()
        empty = self.command == "HEAD" or not content
        if kind == "lost" or (kind == "cut" and empty):
            self.reset()
            return
        if kind == "forgotten":
            self.refuse(*ERRORS[kind])
            return
        sent = content[: len(content) // 2] if kind in ("cut", "short") else content
        length = len(sent) if kind == "short" else len(content)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        announced = answer.getheader("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", announced or str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if kind == "cut":
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>secret-message</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Close so that the client gets an RST."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True
        with suppress(OSError):
            self.rfile.close()
            self.connection.close()
