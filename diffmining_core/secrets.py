"""Addresses and messages without their secrets: passwords, tokens and signatures.

A secret in an address is used to read the file. It is never stored, logged or shown.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

REMEDY = (
    "do not put passwords, tokens or signatures in the address: addresses are stored with the "
    "results; for S3 set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for web "
    "servers fsspec's settings (FSSPEC_HTTPS); the rows of a manifest may have signed addresses"
)
"""What to do instead; the end of a sentence."""

_ADDRESS = re.compile(r"(?P<base>[^?#]*)(?:\?(?P<query>[^#]*))?(?P<fragment>#.*)?", re.DOTALL)

# A password may hold what should have been escaped: then what follows the colon is no port.
_USER = re.compile(
    r"(?:(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*):)?//"
    r"(?:(?P<user>[^/?#\s\"'<>]*)|[^/?#\s:@\[]+:(?!:|\d*(?:[/?#\s]|$))[^\s\"'<>]*)@"
)
_NO_PASSWORD = ("abfs", "abfss", "wasb", "wasbs", "github")
"""Protocols with a container or a repository before the `@`."""
_TOKEN_AS_USER = ("http", "https", "s3", "s3a")
"""Protocols where a name alone before the `@` is a key or a token."""

_QUERY_IN_TEXT = re.compile(r"(?<=\S)\?[\w.~%\[\]-]+=[^\s\"'<>]*")
_QUERY_OF_ADDRESS_IN_TEXT = re.compile(r"(https?://[^\s\"'<>?]*)\?[^\s\"'<>]*", re.IGNORECASE)

_SECRET = re.compile(
    r"x-(?:amz|goog|cos|obs)-.*|x-oss-(?!process).*|awsaccesskeyid|ossaccesskeyid|googleaccessid"
    r"|key-pair-id"
    r"|sig|signature|sign|hmac|expires|expiry|hdne[at]s?|hdnts|_*token_*|.*[_-]token|auth"
    r"|authorization|api[_-]?key|apikey|password|passwd|pwd|secret|client_secret|jwt|sas|credential",
    re.IGNORECASE,
)
"""Parameters that never say which image is meant, only who may read it and how long."""
_SIGNATURES = ("sig", "signature")
_SIGNED_WITH = re.compile(
    r"policy|sv|ss|srt|sp|se|st|spr|sr|sip|si|sdd|ses|sce|scid|skoid|sktid|skt|ske|sks|skv"
    r"|saoid|suoid",
    re.IGNORECASE,
)
"""Parameters that belong to the signature where there is one (Azure's SAS, CloudFront)."""


def cleaned(address: str) -> str:
    """The address by which a thing is known and shown; itself where it holds no secret.

    Without user and password, and without the query of a web address. What a query says beside
    signatures, tokens and times of expiry may select an image (`photo?id=5`): it stays as a hash in
    the fragment, so that two images stay two, and one that is signed again stays the same.
    """
    if "://" not in address:
        return address
    address = _USER.sub(_without_user, address)
    parts = _ADDRESS.fullmatch(address)
    if parts is None or parts["query"] is None:
        return address
    parameters = [one for one in parts["query"].split("&") if one]
    selecting = _selecting(parameters)
    is_web = re.search(r"https?://", parts["base"], re.IGNORECASE)
    if not is_web and len(selecting) == len(parameters):
        return address  # elsewhere "?" is a character of a name like others
    mark = f"#{_short_hash('&'.join(sorted(selecting)))}" if selecting else ""
    return f"{parts['base']}{mark}{parts['fragment'] or ''}"


def without_secrets(text: str) -> str:
    """A message without the users, passwords and queries of the addresses in it."""
    if "?" not in text and "//" not in text:
        return text
    text = _USER.sub(_without_user, text)
    return _QUERY_IN_TEXT.sub("", _QUERY_OF_ADDRESS_IN_TEXT.sub(r"\1", text))


@contextmanager
def secrets_kept() -> Iterator[None]:
    """Raise an error whose message holds a secret as one of its kind whose message does not."""
    try:
        yield
    except Exception as error:
        said = str(error)
        if (clean := without_secrets(said)) == said:
            raise
        raise _like(error, clean) from None  # whose traceback would say it again


def keep_secrets_out_of_logs() -> None:
    """Have all log records of this process, with their tracebacks, formatted without secrets."""
    logging.setLogRecordFactory(_Record)


class _Record(logging.LogRecord):
    """A record that is formatted without secrets, whoever logs it and whoever handles it."""

    _exc_text: str | None = None

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return without_secrets(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        """The traceback; a formatter sets it once and then only reads it."""
        return self._exc_text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._exc_text = without_secrets(text) if text else text


def _without_user(match: re.Match[str]) -> str:
    protocol, user = (match["protocol"] or "").lower(), match["user"]
    is_place = protocol in _NO_PASSWORD
    is_plain_name = user is not None and ":" not in user and protocol not in ("", *_TOKEN_AS_USER)
    if is_place or is_plain_name:
        return match[0]
    return f"{match['protocol']}://" if match["protocol"] else "//"


def _selecting(parameters: list[str]) -> list[str]:
    """The parameters of a query that may say which image is meant."""
    names = [one.partition("=")[0] for one in parameters]
    is_signed = any(name.lower() in _SIGNATURES for name in names)
    return [
        parameter
        for name, parameter in zip(names, parameters, strict=True)
        if not _SECRET.fullmatch(name) and not (is_signed and _SIGNED_WITH.fullmatch(name))
    ]


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


def _like(error: Exception, message: str) -> Exception:
    """An error that is handled as `error` is."""
    for kind in (FileNotFoundError, PermissionError, ConnectionError, TimeoutError, OSError):
        if isinstance(error, kind):
            return kind(message)
    return RuntimeError(f"{type(error).__name__}: {message}")
