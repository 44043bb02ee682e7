"""A way to a server that can be cut for a while: real connections that are refused and reset."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, temporary_settings


class Relay:
    """Passes bytes between its own port of 127.0.0.1 and another, unless it is `cut`."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.connections: set[socket.socket] = set()
        self.listener: socket.socket | None = None
        self.port = 0
        self.mend()

    def mend(self) -> None:
        """Take connections, at the same port each time."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.listener, self.port = listener, listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def cut(self) -> None:
        """Refuse connections, and end those that there are."""
        assert self.listener is not None
        self._end(self.listener)
        for connection in list(self.connections):
            self._end(connection)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self.connections |= {near, far}
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for connection in (source, target):
            self._end(connection)

    def _end(self, connection: socket.socket) -> None:
        self.connections.discard(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it
        connection.close()


@contextmanager
def relayed(api: str) -> Iterator[Relay]:
    """Inside, Prefect reaches the server at `api` through the relay."""
    relay = Relay(urlsplit(api).port or 80)
    _hand_over()
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{relay.port}/api"}):
        yield relay
        _hand_over()
    relay.cut()


def _hand_over() -> None:
    """Sends the last log lines and events the way they were made for."""
    APILogHandler().flush()
    EventsWorker.drain_all()
