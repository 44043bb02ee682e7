"""Where the addresses of images may lead.

A dataset reaches its own place, everything below it, and the places that its user allows. A place
is a folder, or an address such as `s3://bucket/prefix/` or `https://cdn.example/photos/`; `https://`
alone is every public host. An address on this machine or on a private network is only reached where
that very host and port is allowed, and so is a name that resolves to one.

`Reach` decides while a dataset is listed, once for each address. While images are read, in later
stages and on other machines too, `allowed_places` guards the connections: a name is resolved once,
and every redirect is checked again (`web`).
"""

from __future__ import annotations

import ipaddress
import json
import os
import posixpath
import re
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

from diffmining_core.errors import InputError, UnreadableError

ALLOW = "DIFFMINING_ALLOW"
"""Environment variable with places that every dataset may reach on this machine: a JSON list."""

ALSO, MAX_IMAGE_MB = "DIFFMINING_ALLOW_HERE", "DIFFMINING_MAX_IMAGE_MB"
"""Environment variables with the options of this process's flows, for its children too."""

DEFAULT_MAX_IMAGE_MB = 512

OUTSIDE = "outside what the dataset may reach: "
"""Begins the reason of a row that is refused; the place that would have to be allowed follows."""

PLACES_NAMED = 10

WEB = ("http", "https")
_PORTS = {"http": 80, "https": 443}
_LOCAL = ("file", "local")
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CHAINED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*::")
_WITHOUT_SLASHES = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(?!//|:)")
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 behind NAT64

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Place:
    """A folder, or a prefix of addresses; compared by what would be opened, not by spelling.

    authority: host and port of a web address; "" in a place of every host. path: without a last
    slash; begins with the bucket.
    """

    scheme: str
    authority: str
    path: str

    def holds(self, other: Place) -> bool:
        """Whether `other` is this place or below it."""
        if self.scheme != other.scheme:
            return False
        if self.scheme in WEB and not self.authority:
            return not is_private_host(other.host)
        is_below = other.path == self.path or other.path.startswith(f"{self.path}/")
        return self.authority == other.authority and is_below

    @property
    def host(self) -> str:
        """The host of a web address, without its port."""
        return self.authority.rpartition(":")[0].strip("[]")


def is_local(uri: str) -> bool:
    """Whether an address is a path on this machine."""
    return uri.startswith("/") or (not _CHAINED.match(uri) and scheme_of(uri) in ("", *_LOCAL))


def scheme_of(uri: str) -> str:
    """The scheme of an address in lower case, "" of a path."""
    match = None if uri.startswith("/") else _SCHEME.match(uri)
    return match[1].lower() if match else ""


def local_path(uri: str) -> str:
    """The path that a local address means."""
    scheme = scheme_of(uri)
    rest = uri[len(scheme) :]
    return str(LocalFileSystem._strip_protocol(f"file{rest}")) if scheme else uri


def is_chain(uri: str) -> bool:
    """Whether fsspec would read an address through others, as `simplecache::https://…`."""
    return "::" in uri and not is_local(uri) and scheme_of(uri) not in WEB


def web_url(uri: str) -> Url:
    """The parts of a web address, its path without dots; ValueError if it is none."""
    if "\\" in uri:  # which some take for a slash
        raise ValueError("its address holds a backslash")
    try:
        url = parse_url(re.sub("%2e", ".", uri, flags=re.IGNORECASE))
    except LocationParseError as error:
        raise ValueError("its address cannot be read") from error
    if url.scheme not in WEB or not url.host:
        raise ValueError("its address names no host")
    return url


def authority_of(url: Url) -> str:
    """Host and port as they are compared: numeric hosts in their one usual spelling."""
    host = str(url.host).strip("[]").rstrip(".").lower()
    address = _numeric(host)
    if address is not None:
        host = f"[{address}]" if address.version == 6 else str(address)
    return f"{host}:{port_of(url)}"


def port_of(url: Url) -> int:
    """The port of a web address, its scheme's own if it names none."""
    return url.port or _PORTS[str(url.scheme)]


def place_of(uri: str) -> Place:
    """The place that an address stands for; ValueError if it cannot be read.

    Links are followed.
    """
    if is_local(uri):
        return Place("file", "", os.path.realpath(local_path(uri)).rstrip("/"))
    if is_chain(uri):
        return Place("::", uri, "")
    scheme = scheme_of(uri)
    if scheme in WEB:
        if uri[len(scheme) :] == "://":
            return Place(scheme, "", "")
        url = web_url(uri)
        path = url.path or ""
        if ".." in unquote(path).replace("\\", "/").split("/"):
            raise ValueError("its address climbs by encoded dots")
        return Place(scheme, authority_of(url), path.rstrip("/"))
    path = uri[len(scheme) + 3 :].strip("/")
    if ".." in path.split("/"):
        raise ValueError("its address climbs by `..`")
    path = posixpath.normpath(f"/{path}").rstrip("/")
    return Place(_ALIASES.get(scheme, scheme), "", path)


def place_to_allow(uri: str) -> str:
    """The least place that a user would allow for an address: its folder or host."""
    if is_local(uri):
        return os.path.realpath(local_path(uri)).rpartition("/")[0] + "/"
    if is_chain(uri):
        return uri
    scheme = scheme_of(uri)
    if scheme in WEB:
        try:
            url = web_url(uri)
        except ValueError:
            return f"{scheme}://"
        authority = authority_of(url)
        return f"{scheme}://{authority.removesuffix(f':{_PORTS[scheme]}')}/"
    return f"{uri.rpartition('/')[0]}/"


def own_place(dataset: str) -> str:
    """The folder of a dataset that is a folder, or the folder above its pattern."""
    if not has_magic(dataset):
        return dataset
    parts = dataset.split("/")
    first = next(number for number, part in enumerate(parts) if has_magic(part))
    return "/".join(parts[:first]) or "/"


class Reach:
    """The places that a dataset may reach: `own`, the folder it is in, and those allowed."""

    def __init__(self, own: str, allow: Iterable[str] = ()) -> None:
        self.allow = tuple(sorted({*allow, *allowed_everywhere()}))
        self._places = [_place_given(own), *map(_place_allowed, self.allow)]
        self._real_folder = lru_cache(maxsize=64)(os.path.realpath)

    def fault(self, uri: str) -> str | None:
        """Why an address is refused, None where it is not."""
        try:
            place = self._place(uri)
        except ValueError as error:
            return str(error)
        if any(allowed.holds(place) for allowed in self._places):
            return None
        return OUTSIDE + place_to_allow(uri)

    def check(self, uri: str) -> None:
        """InputError if a file of the dataset itself is refused."""
        if fault := self.fault(uri):
            option = (
                f"; if it is meant to be read, add --allow {_quoted(fault.removeprefix(OUTSIDE))}"
            )
            raise InputError(f"{uri}: {fault}{option if fault.startswith(OUTSIDE) else ''}")

    def _place(self, uri: str) -> Place:
        if not is_local(uri):
            return place_of(uri)
        path = local_path(uri)
        if "\0" in path:
            raise ValueError("its address holds a NUL")
        # By the folder, which is the same for many, unless the file itself is a link. Path's
        # is_symlink raises where a name is too long.
        folder, _, name = path.rpartition("/")
        if name in ("", ".", "..") or os.path.islink(path):  # noqa: PTH114
            return place_of(uri)
        return Place("file", "", f"{self._real_folder(folder or '/').rstrip('/')}/{name}")


def _place_allowed(text: str) -> Place:
    """A place that a user allows; InputError if it would allow nothing, or not what it says."""
    if fault := _fault_of_place(text):
        raise InputError(
            f"{text!r} is no place that can be allowed: {fault}; give a folder, or an address such "
            "as https://cdn.example/photos/ or s3://bucket/photos/"
        )
    return _place_given(text)


def _fault_of_place(text: str) -> str | None:
    if not text.strip():
        return "it is empty"
    if text.startswith("~"):
        return "`~` is not read as your home folder here"
    if _WITHOUT_SLASHES.match(text):
        return "its `:` is not followed by `//`"
    is_pattern = has_magic(text) and not Path(text).exists() if is_local(text) else "*" in text
    return "it is a pattern, and all below a place is allowed anyway" if is_pattern else None


def _place_given(text: str) -> Place:
    """A place that a user gave."""
    try:
        return place_of(text)
    except ValueError as error:
        raise InputError(f"{text!r} is no place that can be allowed: {error}") from error


def allowed_everywhere() -> tuple[str, ...]:
    """The places that the machine's operator allows all datasets."""
    return _places_in(ALLOW)


def allowed_places() -> tuple[str, ...]:
    """The places that this process's images may be read from, beside their own hosts."""
    return _places_in(ALLOW) + _places_in(ALSO)


def _places_in(variable: str) -> tuple[str, ...]:
    text = os.environ.get(variable, "")
    try:
        places = json.loads(text) if text.strip() else []
    except ValueError:
        places = None
    if not isinstance(places, list) or not all(isinstance(place, str) for place in places):
        raise InputError(f'{variable} should be a JSON list such as ["https://cdn.example/"]')
    return tuple(places)


def max_image_bytes() -> int:
    """The most bytes that one image's file may have."""
    text = os.environ.get(MAX_IMAGE_MB, "") or str(DEFAULT_MAX_IMAGE_MB)
    try:
        return int(text) * 10**6
    except ValueError as error:
        raise InputError(f"{MAX_IMAGE_MB} should be a whole number, but is {text!r}") from error


def check_bytes(size: int) -> None:
    """UnreadableError if an image's file has more bytes than one may have."""
    limit = max_image_bytes()
    if size > limit:
        raise UnreadableError(
            f"its file is over {limit // 10**6} MB; --max-image-mb allows larger ones"
        )


def set_reach(allow: Sequence[str], max_image_mb: int) -> None:
    """Let this process and its children read images from these places too, up to this size.

    Places only add up: several flows may run in one process.
    """
    places = [*_places_in(ALSO), *allow]
    os.environ[ALSO] = json.dumps(list(dict.fromkeys(places)))
    os.environ[MAX_IMAGE_MB] = str(max_image_mb)


def reached_by(dataset: str) -> list[str]:
    """A dataset's own place, if it is on the web, where connections are guarded."""
    if scheme_of(dataset) not in WEB:
        return []
    own = own_place(dataset)
    is_file = "." in own.rpartition("/")[2] and own.count("/") > 2
    return [own.rpartition("/")[0] if is_file else own]


def is_private(address: Address) -> bool:
    """Whether an IP address is not everybody's: private, loopback, link-local, multicast and such.

    IPv4 addresses within IPv6 ones count as what they are.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo:
            inner = address.teredo[1]
        if inner is not None:
            return is_private(inner)
    return not address.is_global or address.is_multicast


def is_private_host(host: str) -> bool:
    """Whether a host is by its spelling an address that is not everybody's."""
    address = _numeric(host)
    return is_private(address) if address else is_localhost(host)


def is_localhost(host: str) -> bool:
    """Whether a name always means this machine."""
    return host == "localhost" or host.endswith(".localhost")


def _numeric(host: str) -> Address | None:
    """The IP address that a host is, in any spelling that systems take, such as 0x7f.1."""
    try:
        address: Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if not re.fullmatch(r"[0-9a-fx.]*\d[0-9a-fx.]*", host) or not host[0].isdigit():
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except OSError:
            return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def advice(reasons: Iterable[str]) -> str:
    """One clause: how many rows lead to which places, and how those are allowed; "" for none."""
    counts = Counter(r.removeprefix(OUTSIDE) for r in reasons if r.startswith(OUTSIDE))
    if not counts:
        return ""
    while len(counts) > PLACES_NAMED and len(wider := _gathered(counts)) < len(counts):
        counts = wider
    named = counts.most_common(PLACES_NAMED)
    places = ", ".join(f"{place} ({count})" for place, count in named)
    more = f" and {len(counts) - len(named)} more places" if len(counts) > len(named) else ""
    options = " ".join(f"--allow {_quoted(place)}" for place, _ in named)
    every = " (`--allow https://` allows every public host)" if more else ""
    return (
        f"{counts.total()} lead outside the dataset, to {places}{more}; if they are meant to be "
        f"read, add {options}{every}"
    )


def _gathered(counts: Counter[str]) -> Counter[str]:
    """The counts by parent folder; hosts, buckets and top-level folders stay as they are."""
    wider: Counter[str] = Counter()
    for place, count in counts.items():
        above = place.rstrip("/").rpartition("/")[0] + "/"
        stays = scheme_of(place) in WEB or above == "/" or above.endswith("//") or "::" in place
        wider[place if stays else above] += count
    return wider


def _quoted(place: str) -> str:
    return place if re.fullmatch(r"[\w@%+=:,./-]+", place) else json.dumps(place)
