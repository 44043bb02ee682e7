"""The gallery of a root over HTTP, while the pipeline runs and after: read-only, on this machine.

`/` is the page published at the root, or the status until there is one; `/status` how far the run
is. Files are read from the root, wherever it lies, and only those that pages lead to.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from socket import AF_INET, AF_INET6, create_server, socket
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from diffmining_core.errors import InputError
from diffmining_core.report.environment import STATIC
from diffmining_core.report.served import ServedFile, served_file
from diffmining_core.report.shown_addresses import ShownAddresses
from diffmining_core.report.shown_paths import without_folders
from diffmining_core.report.so_far import SoFar, Strip
from diffmining_core.report.status_page import CSP, RunState, render_status, run_state, with_bar
from diffmining_core.store.media_types import media_type
from diffmining_core.store.roots import Root
from diffmining_core.store.status import StageStatus, run_root, run_status

STATUS_SECONDS = 3.0
"""For so long a status counts as new, so that many browsers cost one listing."""
STRIPS_SECONDS = 10.0
"""The same of the highest patches so far, which take reading images."""
STORAGE_RETRY_SECONDS = 10
"""After which a browser may ask again where the storage did not answer."""

GALLERY = "index.html"
OWN_FILES = ("site.css", "status.css", "status.js", "icon.svg")

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; style-src 'self'; "
    "script-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'self'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}
"""On every answer, unless it has its own."""

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

logger = logging.getLogger(__name__)

Value = TypeVar("Value")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]


class Fresh(Generic[Value]):
    """A value that is asked for anew when it is old; one asks at a time, the others wait for it."""

    def __init__(self, ask: Callable[[], Value], seconds: float) -> None:
        self.ask, self.seconds = ask, seconds
        self._lock = threading.Lock()
        self._kept: tuple[float, Value] | None = None

    def get(self) -> Value:
        """The value, at most so many seconds old; what asking raises."""
        with self._lock:
            if self._kept is None or time.monotonic() - self._kept[0] > self.seconds:
                value = self.ask()
                self._kept = (time.monotonic(), value)
            return self._kept[1]


class Strips:
    """The highest patches so far, looked at aside: no page waits for images to be read."""

    def __init__(self, root: Root) -> None:
        self.so_far = SoFar(root)
        self.shown: list[Strip] = []
        self._webps: dict[str, bytes] = {}
        self._looked = -STRIPS_SECONDS
        self._looking = threading.Lock()

    def get(self) -> list[Strip]:
        """Those of the last look; another begins where that is some seconds ago."""
        if time.monotonic() - self._looked >= STRIPS_SECONDS and self._looking.acquire(False):
            threading.Thread(target=self._look, name="highest so far", daemon=True).start()
        return self.shown

    def webp(self, name: str) -> bytes | None:
        """The picture of this name, of this look or the one before."""
        return self._webps.get(name)

    def _look(self) -> None:
        try:
            strips = self.so_far.look()
            before = {strip.name: strip.webp for strip in self.shown}
            self._webps = before | {strip.name: strip.webp for strip in strips}
            self.shown = strips
        except Exception as error:  # the page does without them, and looks again
            why = without_folders(repr(error))
            logger.warning("The highest patches so far cannot be had: %s", why)
        finally:
            self._looked = time.monotonic()
            self._looking.release()


class Site:
    """What a browser can ask of a root."""

    def __init__(self, root: Root, dataset: str) -> None:
        self.root, self.dataset = root, dataset
        self.stages = Fresh(partial(shown_status, root), STATUS_SECONDS)
        self.strips = Strips(root)

    def app(self, hosts: Sequence[str] | None) -> Asgi:
        """The application; hosts: names that it answers to, None for any."""
        get = partial(Route, methods=["GET"])
        routes = [
            get("/", self.home),
            get("/status", self.status),
            get("/status.json", self.status_json),
            get("/static/{name}", self.own_file),
            get("/so-far/{name}", self.strip),
            get("/{path:path}", self.file),
        ]
        faults = dict.fromkeys((InputError, OSError), storage_fault)
        return guarded(Starlette(routes=routes, exception_handlers=faults), hosts)

    def home(self, request: Request) -> Response:
        """The gallery as it is published, with a bar while a run is going; else the status."""
        gallery = served_file(self.root, GALLERY)
        if gallery is None:
            return self._status_page(is_home=True, has_gallery=False)
        run = self._run()
        if not run.going:
            return answer(request, gallery)
        return HTMLResponse(with_bar(gallery.read(), run), headers={"Cache-Control": "no-cache"})

    def status(self, _request: Request) -> Response:
        """How far the run is."""
        has_gallery = self.root.holds(GALLERY) and self.root.exists(GALLERY)
        return self._status_page(is_home=False, has_gallery=has_gallery)

    def status_json(self, _request: Request) -> Response:
        """The same for programs: as `diffmining status --json`, and the run as a whole."""
        stages, run = self.stages.get(), self._run()
        document = {
            "root": self.root.name,
            "dataset": self.dataset,
            "run": {"state": run.state, "headline": run.headline, "detail": run.detail},
            "stages": [asdict(stage) for stage in stages],
        }
        return JSONResponse(document, headers={"Cache-Control": "no-cache"})

    def own_file(self, request: Request) -> Response:
        """What the status page is made of, from this package."""
        name = request.path_params["name"]
        if name not in OWN_FILES:
            return not_found()
        content = (STATIC / name).read_bytes()
        headers = {"Cache-Control": "no-cache"}
        return Response(content, media_type=media_type(name), headers=headers)

    def strip(self, request: Request) -> Response:
        """A strip of the highest patches so far."""
        webp = self.strips.webp(request.path_params["name"])
        if webp is None:
            return not_found()
        return Response(webp, media_type="image/webp", headers={"Cache-Control": IMMUTABLE})

    def file(self, request: Request) -> Response:
        """A file of the root that pages lead to; a folder's page by the folder's name."""
        path = request.path_params["path"]
        found = served_file(self.root, f"{path}index.html" if path.endswith("/") else path)
        return not_found() if found is None else answer(request, found)

    def _run(self) -> RunState:
        return run_state(self.stages.get(), time.time())

    def _status_page(self, is_home: bool, has_gallery: bool) -> Response:
        stages: list[StageStatus] = self.stages.get()
        strips = [] if has_gallery and not self._run().going else self.strips.get()
        page = render_status(
            self.dataset, self.root.name, stages, strips, time.time(), is_home, has_gallery
        )
        headers = {
            "Cache-Control": "no-cache",
            "Content-Security-Policy": f"{CSP}; frame-ancestors 'self'",
        }
        return HTMLResponse(page, headers=headers)


def shown_status(root: Root) -> list[StageStatus]:
    """How far the run is, without the folders of this machine in the reasons of failures."""
    dataset = ShownAddresses.at(root).dataset
    folders = [root.path, *([dataset] if dataset else [])]

    def shown(failed: Mapping[str, str]) -> dict[str, str]:
        return {key: without_folders(why, folders) for key, why in failed.items()}

    return [replace(stage, failed=shown(stage.failed)) for stage in run_status(root, time.time())]


IMMUTABLE = "max-age=31536000, immutable"


def answer(request: Request, file: ServedFile) -> Response:
    """The file, or 304 where the browser has it."""
    tag = f'"{file.digest}"'
    headers = {"ETag": tag, "Cache-Control": IMMUTABLE if file.is_immutable else "no-cache"}
    asked = {one.strip() for one in request.headers.get("if-none-match", "").split(",")}
    if asked & {tag, f"W/{tag}", "*"}:
        return Response(status_code=304, headers=headers)
    return Response(file.read(), media_type=file.kind, headers=headers)


def not_found() -> Response:
    """For all that is not there, or not for browsers."""
    return PlainTextResponse("There is no such page.\n", 404)


def guarded(app: Asgi, hosts: Sequence[str] | None) -> Asgi:
    """The application behind what every request meets: a look at the name, strict headers.

    hosts: where a page elsewhere has its own name lead to this machine (DNS rebinding), it is not
    among them.
    """

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        if hosts is not None and host_of(Headers(scope=scope).get("host", "")) not in hosts:
            refusal = PlainTextResponse(
                "This server answers only to the name of this machine, such as localhost.\n", 421
            )
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await app(scope, receive, send_with_headers)
        except Exception as error:  # Starlette has answered 500; uvicorn's traceback shows paths
            why = without_folders(repr(error))
            logger.error("%r cannot be answered: %s", scope["path"], why)

    return guard


def storage_fault(_request: Request, error: Exception) -> Response:
    """What is said where the root cannot be read; whoever serves sees it too."""
    why = without_folders(str(error))
    logger.warning("%s", why)
    again = {"Retry-After": str(STORAGE_RETRY_SECONDS)}
    return PlainTextResponse(f"The results cannot be read now: {why}\n", 503, again)


def host_of(header: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serve(url: str, host: str, port: int) -> None:
    """Serve the root until interrupted; its address is printed first. InputError if it cannot."""
    root, run = run_root(url)
    dataset = run.identity.get("dataset", root.url).rstrip("/*").rpartition("/")[2]
    hosts = sorted({*LOCAL_NAMES, host}) if is_loopback(host) else None
    with bound(host, port) as listening:
        at = listening.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        print(f"Serving {root.name} at http://{name}:{at}/ (Ctrl-C ends it)", flush=True)
        if hosts is None:
            print(
                f"diffmining: {host} is not this machine alone: whoever reaches port {at} sees "
                "these results, with no password asked",
                file=sys.stderr,
            )
        config = uvicorn.Config(
            Site(root, dataset.replace("_", " ")).app(hosts),
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
        )
        with contextlib.suppress(KeyboardInterrupt):  # which is how it ends
            uvicorn.Server(config).run([listening])


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket]:
    """A socket that listens there; InputError if that cannot be."""
    family = AF_INET6 if ":" in host else AF_INET
    if not 0 <= port < 2**16:
        raise InputError(f"--port should be from 0, for any that is free, to 65535, but is {port}")
    try:
        listening = create_server((host, port), family=family)
    except OSError as error:
        raise InputError(
            f"port {port} of {host} cannot be listened at ({error.strerror}); give another with "
            "--port, 0 for any that is free, or another --host"
        ) from error
    with listening:
        yield listening
