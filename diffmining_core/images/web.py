"""Images on the web: read with one deadline, one limit of bytes, and only from where they may be.

A host's name is resolved once, the address that comes is checked, and the connection goes to that
address under the name's own certificate. Redirects are followed one by one and checked alike. What
goes wrong belongs to the one image; a host that is gone is remembered for a while, so that the next
thousand of its images cost no time.
"""

from __future__ import annotations

import base64
import errno
import ipaddress
import logging
import math
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.response import HTTPResponse
from urllib3.util import Timeout, Url

from diffmining_core.errors import UnreadableError
from diffmining_core.images.reach import (
    OUTSIDE,
    Address,
    allowed_places,
    authority_of,
    check_bytes,
    is_localhost,
    is_private,
    place_of,
    place_to_allow,
    port_of,
    web_url,
)

TRIES = 4
BACKOFF_SECONDS = 0.5
"""Before the second try where the server names no time; twice as long before each further one."""
MAX_WAIT_SECONDS = 30.0
"""A server that asks for a longer pause (`Retry-After`) is not asked again."""
DEADLINE_SECONDS = 120.0
"""For one image, all tries, redirects and waits together."""
CONNECT_SECONDS = 10.0
READ_SECONDS = 30.0
"""Without a byte."""
GONE_SECONDS = 300.0
"""A host that cannot be reached is not tried again for this long."""
GIVEN_UP = 5
"""Images in a row that a host failed to serve in all tries, until it counts as gone."""
RESOLVED_SECONDS = 60.0
MAX_REDIRECTS = 10
BLOCK = 2**16

AGENT = "diffmining"
PASSING = {429, 500, 502, 503, 504}
REDIRECTS = {301, 302, 303, 307, 308}


class _Timed(HTTPConnection):
    """A connection on which an answer's headers cannot take longer than an image may."""

    def getresponse(self) -> HTTPResponse:  # type: ignore[override] # as its own class has it
        is_over = threading.Event()

        def shut() -> None:
            is_over.set()
            with suppress(OSError, AttributeError):  # it may be closed by now
                self.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(DEADLINE_SECONDS, shut)
        timer.daemon = True
        timer.start()
        try:
            response = super().getresponse()
        except Exception as error:
            if is_over.is_set():
                raise TimeoutError from error
            raise
        finally:
            timer.cancel()
        if is_over.is_set():
            response.close()
            raise TimeoutError
        return response


class _TimedOverTLS(_Timed, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Timed


class _PoolOverTLS(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TimedOverTLS


# Its warnings of odd headers tell whole addresses, which may hold signatures.
logging.getLogger("urllib3.connection").setLevel(logging.ERROR)

_pools = urllib3.PoolManager(num_pools=64, maxsize=8)
_pools.pool_classes_by_scheme = {"http": _Pool, "https": _PoolOverTLS}


@dataclass
class Host:
    """The state of a host and port. resolved: its addresses, and time.monotonic() then."""

    resolved: tuple[list[str], float] | None = None
    paused_until: float = 0.0
    gone_until: float = 0.0
    gone_because: str = ""
    given_up: int = 0


_hosts: dict[str, Host] = {}
_lock = threading.RLock()


class _PassingError(Exception):
    """A fault of a host after which another try may succeed.

    wait: seconds that it asks for. is_gone: whether it cannot be reached at all.
    """

    def __init__(
        self, url: Url, fault: str, wait: float | None = None, is_gone: bool = False
    ) -> None:
        super().__init__(f"{url.host} {fault}")
        self.host = _host(url)
        self.wait = wait
        self.is_gone = is_gone


def fetch(uri: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes at a web address, or its bytes `start` to `end` (exclusive).

    FileNotFoundError if the server has no such file; UnreadableError, which names the host but not
    the address, for whatever else is wrong.
    """
    try:
        web_url(uri)
    except ValueError as error:
        raise UnreadableError(str(error)) from error
    deadline = time.monotonic() + DEADLINE_SECONDS
    for tried in range(1, TRIES + 1):
        try:
            return _followed(uri, (start, end), deadline)
        except _PassingError as error:
            wait = BACKOFF_SECONDS * 2 ** (tried - 1) if error.wait is None else error.wait
            ends = time.monotonic() + wait
            if tried == TRIES or wait > MAX_WAIT_SECONDS or ends > deadline:
                _give_up(error)
                times = f", asked {tried} times" if tried > 1 else ""
                raise UnreadableError(f"{error}{times}") from error
            with _lock:
                error.host.paused_until = max(error.host.paused_until, ends)
    raise AssertionError("the last try returns or raises")


def _host(url: Url) -> Host:
    with _lock:
        return _hosts.setdefault(authority_of(url), Host())


def _wait_for(url: Url, deadline: float) -> None:
    """Wait as long as the host asked for, for this image or another."""
    host, now = _host(url), time.monotonic()
    if host.gone_until > now:
        raise UnreadableError(host.gone_because)
    if host.paused_until > deadline:
        raise UnreadableError(f"{url.host} asks to wait for too long")
    time.sleep(max(0.0, host.paused_until - now))


def _give_up(error: _PassingError) -> None:
    host = error.host
    with _lock:
        host.given_up += 1
        if error.is_gone or host.given_up >= GIVEN_UP:
            host.gone_until = time.monotonic() + GONE_SECONDS
            host.gone_because = str(error)
            host.given_up = 0


def _followed(uri: str, part: tuple[int | None, int | None], deadline: float) -> bytes:
    """One try, through all redirects."""
    first = web_url(uri)
    places = [place_of(place) for place in allowed_places()]
    if not any(place.holds(place_of(uri)) for place in places):
        # It was admitted when it was indexed: its own host is allowed, by https too.
        places += [place_of(f"{scheme}://{_netloc(first)}/") for scheme in _schemes(first)]
    seen: set[str] = set()
    while True:
        url = web_url(uri)
        if uri in seen:
            raise UnreadableError(f"{url.host} redirects in a circle")
        if len(seen) > MAX_REDIRECTS:
            raise UnreadableError(f"redirected more than {MAX_REDIRECTS} times")
        seen.add(uri)
        if len(seen) > 1 and not any(place.holds(place_of(uri)) for place in places):
            raise UnreadableError(OUTSIDE + place_to_allow(uri))
        _wait_for(url, deadline)
        address = _checked_address(url)
        auth = url.auth if authority_of(url) == authority_of(first) else None
        response = _asked(url, address, auth, part, deadline)
        try:
            if response.status not in REDIRECTS:
                return _body(response, url, part, deadline)
            location = response.headers.get("Location")
        finally:
            # Not given back to the pool: its rest may be endless.
            response.close()
        if not location:
            raise UnreadableError(f"{url.host} redirects to nowhere")
        try:
            uri = urljoin(uri, location)
            web_url(uri)
            place_of(uri)
        except ValueError as error:
            raise UnreadableError(f"{url.host} redirects to what is no web address") from error


def _schemes(url: Url) -> tuple[str, ...]:
    return ("http", "https") if url.scheme == "http" and not url.port else (str(url.scheme),)


def _netloc(url: Url) -> str:
    return f"{url.host}{_port(url)}"


def _checked_address(url: Url) -> str:
    """The IP address to connect to; UnreadableError if one is private and not allowed.

    Allowing a name does not allow a private address that it resolves to: whoever controls the name
    could point it there. A private address written into the URL itself is allowed with it.
    """
    host = _host(url)
    now = time.monotonic()
    if host.resolved is None or now - host.resolved[1] > RESOLVED_SECONDS:
        host.resolved = _resolved(url), now
    addresses, _ = host.resolved
    for address in addresses:
        if is_private(_ip(address)) and not _may_reach(url, address):
            inside = f"{url.scheme}://{_shown(address)}{_port(url)}/"
            raise UnreadableError(OUTSIDE + place_to_allow(inside))
    return addresses[0]


def _resolved(url: Url) -> list[str]:
    try:
        found = socket.getaddrinfo(_name(url), port_of(url), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        if getattr(error, "errno", None) == socket.EAI_AGAIN:
            raise _PassingError(url, "cannot be resolved now", is_gone=True) from error
        unknown = _PassingError(url, "is no host that is known", is_gone=True)
        _give_up(unknown)
        raise UnreadableError(str(unknown)) from error
    return [str(entry[4][0]) for entry in found]


def _name(url: Url) -> str:
    return str(url.host).strip("[]")


def _port(url: Url) -> str:
    return f":{url.port}" if url.port else ""


def _shown(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _ip(address: str) -> Address:
    return ipaddress.ip_address(address.partition("%")[0])


def _may_reach(url: Url, address: str) -> bool:
    """Whether this private address is allowed; for `localhost` its name may be, instead."""
    host = _name(url) if is_localhost(_name(url).lower()) else _shown(address)
    wanted = place_of(f"{url.scheme}://{host}{_port(url)}{url.path or '/'}")
    return any(place_of(place).holds(wanted) for place in allowed_places())


def _asked(
    url: Url,
    address: str,
    auth: str | None,
    part: tuple[int | None, int | None],
    deadline: float,
) -> Any:
    """The answer to one request, whose body is still to be read."""
    headers = {"Host": _netloc(url), "User-Agent": AGENT, "Accept-Encoding": "identity"}
    if auth:
        headers["Authorization"] = "Basic " + base64.b64encode(unquote(auth).encode()).decode()
    if part[1] is not None:
        headers["Range"] = f"bytes={part[0] or 0}-{part[1] - 1}"
    name = _name(url).rstrip(".")
    secure = {"server_hostname": name, "assert_hostname": name} if url.scheme == "https" else {}
    pool = _pools.connection_from_host(address, url.port, url.scheme, secure)
    left = deadline - time.monotonic()
    timeout = Timeout(
        connect=max(0.01, min(CONNECT_SECONDS, left)), read=max(0.01, min(READ_SECONDS, left))
    )
    try:
        return pool.urlopen(
            "GET",
            url.request_uri,
            headers=headers,
            redirect=False,
            retries=False,
            timeout=timeout,
            preload_content=False,
            assert_same_host=False,
        )
    except (SSLError, ssl.SSLError) as error:
        raise UnreadableError(f"{url.host} offers no trusted connection ({_why(error)})") from error
    except (NewConnectionError, ConnectTimeoutError) as error:
        refused = "takes no connection" if isinstance(error, NewConnectionError) else "is silent"
        raise _PassingError(url, f"cannot be reached: it {refused}", is_gone=True) from error
    except ReadTimeoutError as error:
        raise _PassingError(url, "does not answer in time") from error
    except (HTTPError, OSError, ValueError) as error:
        raise _PassingError(url, f"breaks off ({type(error).__name__})") from error


def _why(error: BaseException) -> str:
    """The reason of a refused certificate, without addresses."""
    inner = error.args[0] if error.args and isinstance(error.args[0], ssl.SSLError) else error
    return getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or "TLS failed"


def _body(response: Any, url: Url, part: tuple[int | None, int | None], deadline: float) -> bytes:
    """The bytes of an answer, counted as they come."""
    status = int(response.status)
    if status in (404, 410):
        raise FileNotFoundError(errno.ENOENT, f"{url.host} answers {_status(status)}")
    if status in PASSING:
        wait = _retry_after(response.headers.get("Retry-After", ""))
        raise _PassingError(url, f"answers {_status(status)}", wait)
    if status not in ((206,) if part[1] is not None else (200, 203)):
        raise UnreadableError(f"{url.host} answers {_status(status)}")
    data = bytearray()
    try:
        while block := response.read1(BLOCK, decode_content=True):
            data += block
            check_bytes(len(data))
            if time.monotonic() > deadline:
                raise _PassingError(
                    url, f"did not send all of it in {DEADLINE_SECONDS:.0f} seconds"
                )
    except (HTTPError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise _PassingError(url, f"breaks off ({type(error).__name__})") from error
    with _lock:
        _host(url).given_up = 0
    return bytes(data)


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _retry_after(text: str) -> float | None:
    """Seconds that a server asks to wait, by number or date; None where it does not say."""
    try:
        return max(0.0, float(int(text)))
    except OverflowError:
        return math.inf
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
