"""The digest of a night as a message to a webhook, in Slack's format.

The webhook's address is a secret: it is read from a Prefect block and appears in no log, error,
artifact or file; of it only the host is said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import httpx
from prefect.blocks.system import Secret

from diffmining_core.report.digest import Digest, LabelChanges, counted
from diffmining_core.report.escaping import slack_text
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import canonical_json
from tasks.digest import PAGES
from tasks.units import stage_task

TRIES = 3
PAUSES = (2.0, 10.0)
"""Seconds before the second and the third try."""
LONGEST_PAUSE = 60.0
"""However long the server asks to be left alone: the message may fail, the night goes on."""
TIMEOUT = 15.0

HEADER_LIMIT, SECTION_LIMIT, URL_LIMIT = 150, 3000, 3000
"""Characters that Slack takes."""

_LABELS_NAMED = 8
_LOGGERS = ("httpx", "httpcore")


@dataclass(frozen=True)
class Sent:
    """What became of a message: whether it has arrived, now or before, and a sentence about it."""

    arrived: bool
    sentence: str


@stage_task("message", "message {night}")
def send_digest(
    root: str, night: str, told: Digest, page: str, run_page: str | None, block: str
) -> Sent:
    """Send the digest to the webhook whose address is in the Secret block of this name, once.

    A message that arrived is noted beside the night's page, so that the same night, run again,
    sends none; only a death between the two sends it twice. What cannot be sent fails nothing.
    """
    opened = open_root(root)
    noted = f"{PAGES}/{night}/message.json"
    if opened.exists(noted):
        return Sent(True, "The message of this night has been sent before.")
    try:
        address = str(cast("Secret[str]", Secret.load(block)).get()).strip()
    except ValueError:
        return Sent(False, f"No message was sent: there is no Secret block {block!r}; make one.")
    sent = post(address, message(told, page, run_page))
    if sent.arrived:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        opened.write_bytes(noted, canonical_json({"sent": now, "said": sent.sentence}))
    return sent


def post(address: str, body: Mapping[str, Any]) -> Sent:
    """Post a message, up to three times where that may help; never raises."""
    try:
        host = httpx.URL(address).host
    except httpx.InvalidURL:
        host = ""
    if not host or not address.startswith(("https://", "http://")):
        return Sent(False, "No message was sent: the Secret block holds no http address.")
    answer = "no answer"
    with _quiet(), httpx.Client(timeout=TIMEOUT, follow_redirects=False) as client:
        for attempt in range(TRIES):
            pause = PAUSES[attempt] if attempt < len(PAUSES) else 0.0
            try:
                response = client.post(address, json=dict(body))
            except (httpx.HTTPError, httpx.InvalidURL) as error:  # its words may hold the address
                answer = _words(error)
            else:
                if response.is_success:
                    return Sent(True, f"The message has been sent to {host}.")
                answer = f"status {response.status_code}"
                if response.status_code != 429 and response.status_code < 500:
                    break
                pause = _asked_pause(response, pause)
            if attempt + 1 < TRIES:
                time.sleep(pause)
    return Sent(False, f"The message could not be sent: {host} gave {answer}.")


def _words(error: Exception) -> str:
    """What kind of error it is: "ConnectTimeout" as "connect timeout"."""
    name = type(error).__name__
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


def _asked_pause(response: httpx.Response, pause: float) -> float:
    try:
        return min(max(float(response.headers["Retry-After"]), 0.0), LONGEST_PAUSE)
    except (KeyError, ValueError):  # it may also be a date
        return pause


@contextmanager
def _quiet() -> Iterator[None]:
    """The HTTP client logs the address of every request; not while it is ours."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def message(told: Digest, page: str, run_page: str | None) -> dict[str, Any]:
    """The body of the message: a `text` for notifications, and `blocks`.

    page: where the night's page is. run_page: the run's in the Prefect UI, if there is one.
    """
    row = told.row()
    day = f"{told.started.day} {told.started:%B %Y}"
    heading = f"{slack_text(told.title, HEADER_LIMIT - len(day) - 2)}, {day}"
    sections = [row.sentence]
    if told.measured and (said := _labels(told)):
        sections.append(said)
    blocks: list[dict[str, Any]] = [
        {"type": "header", "text": _plain(heading)},
        *({"type": "section", "text": _plain(text)} for text in sections),
        {"type": "context", "elements": [_plain(slack_text(page, SECTION_LIMIT))]},
    ]
    links = {"Open the page": page, "Open the run": run_page or ""}
    buttons = [
        {"type": "button", "text": _plain(name), "url": url}
        for name, url in links.items()
        if url.startswith(("https://", "http://")) and len(url) <= URL_LIMIT
    ]
    if buttons:
        blocks.append({"type": "actions", "elements": buttons})
    text = f"{heading}: {row.sentence}"
    return {"text": text, "blocks": blocks, "unfurl_links": False, "unfurl_media": False}


def _plain(text: str) -> dict[str, Any]:
    """Escaped text as it is: no markup, mentions or links in it."""
    return {"type": "plain_text", "text": text, "emoji": False}


def _labels(told: Digest) -> str:
    """A line for each new label, and for each with clusters that entered, left or moved."""
    new = told.new_labels if told.previous else ()
    by_most = sorted(told.changes, key=lambda one: -len(one.entered) - len(one.left))
    lines = [f"New label: {slack_text(label)}" for label in new[:_LABELS_NAMED]]
    lines += [f"{slack_text(one.label)}: {_changed(one)}" for one in by_most[:_LABELS_NAMED]]
    if (more := len(told.changes) - _LABELS_NAMED) > 0:
        lines.append(f"and {counted(more, 'label')} more")
    return "\n".join(lines)


def _changed(one: LabelChanges) -> str:
    counts = {"entered": one.entered, "left": one.left, "moved": one.moved}
    return ", ".join(f"{len(ranks)} {word}" for word, ranks in counts.items() if ranks)
