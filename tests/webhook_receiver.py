"""A receiver of webhooks on this machine: answers as it is told to, and keeps what came."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from running_server import running_server


@dataclass
class Receiver:
    """`answers` are the next ones, (status, headers) or seconds of silence; then 200."""

    url: str = ""
    answers: list[tuple[int, Mapping[str, str]] | float] = field(default_factory=list)
    received: list[dict[str, Any]] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)


@contextmanager
def webhook_receiver(path: str = "/services/T0/B0/a-secret") -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.asked_at.append(time.monotonic())
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = receiver.answers.pop(0) if receiver.answers else (200, {})
            if isinstance(answer, float):
                time.sleep(answer)
                return
            status, headers = answer
            if status == 200:
                receiver.received.append(body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_port}{path}"
    with running_server(server):
        yield receiver
