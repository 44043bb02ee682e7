from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from pydantic import SecretStr
from webhook_receiver import Receiver, webhook_receiver

sys.path.insert(0, str(Path(__file__).parents[1] / "core" / "report"))
from drawn_nights import LABELS, drawn_digest, quiet

from diffmining_core.report.digest import Digest, LabelChanges
from tasks import webhook
from tasks.webhook import Sent, message, post, send_digest

NIGHT = "2026-11-20T02-00Z"
BLOCK = "digest-hook"


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> Digest:
    return drawn_digest(tmp_path_factory.mktemp("night"))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setattr(webhook, "PAUSES", (0.01, 0.02))
    monkeypatch.setattr(webhook, "TIMEOUT", 0.3)
    with webhook_receiver() as receiver:
        yield receiver


def test_a_message_arrives_whole(receiver: Receiver) -> None:
    assert post(receiver.url, {"text": "<hello>"}) == Sent(
        True, "The message has been sent to 127.0.0.1."
    )
    assert receiver.received == [{"text": "<hello>"}]


@pytest.mark.parametrize("fault", [(500, {}), (503, {}), (429, {"Retry-After": "0.01"}), 0.6])
def test_what_may_pass_is_tried_three_times(
    receiver: Receiver, fault: tuple[int, dict[str, str]] | float
) -> None:
    receiver.answers = [fault, fault]
    assert post(receiver.url, {}).arrived
    assert len(receiver.asked_at) == 3
    receiver.asked_at.clear()
    receiver.answers = [fault] * 3
    sent = post(receiver.url, {})
    assert not sent.arrived
    assert re.search(r"127\.0\.0\.1 gave (status (500|503|429)|read timeout)\.$", sent.sentence)
    assert len(receiver.asked_at) == 3


def test_it_waits_as_long_as_the_server_asks_but_not_for_ever(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answers = [(429, {"Retry-After": "0.3"})]
    assert post(receiver.url, {}).arrived
    assert receiver.asked_at[1] - receiver.asked_at[0] >= 0.3
    monkeypatch.setattr(webhook, "LONGEST_PAUSE", 0.05)
    receiver.answers = [(429, {"Retry-After": "86400"}), (503, {"Retry-After": "Fri, 1 Jan 2027"})]
    assert post(receiver.url, {}).arrived


@pytest.mark.parametrize("status", [302, 400, 403, 404, 410])
def test_what_will_not_pass_is_tried_once(receiver: Receiver, status: int) -> None:
    receiver.answers = [(status, {"Location": f"{receiver.url}/elsewhere"})]
    sent = post(receiver.url, {})
    assert sent == Sent(False, f"The message could not be sent: 127.0.0.1 gave status {status}.")
    assert len(receiver.asked_at) == 1


@pytest.mark.parametrize("address", ["", "no address", "ftp://host/secret", "https://"])
def test_what_is_no_address_is_said_without_saying_it(address: str) -> None:
    sent = post(address, {})
    assert not sent.arrived and "secret" not in sent.sentence
    assert sent.sentence.endswith("holds no http address.")


def test_the_address_is_nowhere_but_in_its_block(
    prefect_api: str,
    receiver: Receiver,
    digest: Digest,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    Secret(value=SecretStr(receiver.url)).save(BLOCK, overwrite=True)
    root, level = str(tmp_path / "root"), logging.getLogger("httpx").level
    with caplog.at_level(logging.DEBUG):
        receiver.answers = [(500, {}), 0.6, (404, {})]
        refused = send_digest.fn(root, NIGHT, digest, "/page", None, BLOCK)
        first = send_digest.fn(root, NIGHT, digest, "/page", None, BLOCK)
        again = send_digest.fn(root, NIGHT, digest, "/page", None, BLOCK)
    assert [sent.arrived for sent in (refused, first, again)] == [False, True, True]
    assert len(receiver.received) == 1
    assert "sent before" in again.sentence
    said = [*capfd.readouterr(), caplog.text, *(s.sentence for s in (refused, first, again))]
    said += [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any("a-secret" in text or "/services/" in text for text in said)
    assert logging.getLogger("httpx").level == level, "others' requests are logged as before"


def test_another_night_is_another_message(
    prefect_api: str, receiver: Receiver, digest: Digest, tmp_path: Path
) -> None:
    Secret(value=SecretStr(receiver.url)).save(BLOCK, overwrite=True)
    for night in (NIGHT, "2026-11-21T02-00Z"):
        assert send_digest.fn(str(tmp_path), night, digest, "/page", None, BLOCK).arrived
    assert len(receiver.received) == 2


def test_a_block_that_is_not_there_is_named(
    prefect_api: str, digest: Digest, tmp_path: Path
) -> None:
    sent = send_digest.fn(str(tmp_path), NIGHT, digest, "/page", None, "no-such-block")
    assert not sent.arrived and "no Secret block 'no-such-block'" in sent.sentence


def test_the_message_says_the_night_in_slacks_format(digest: Digest) -> None:
    body = message(digest, "https://results.example/nights/x/index.html", "http://127.0.0.1/run")
    assert body["text"].startswith("Drawn discs &amp; &lt;b&gt;nothing&lt;/b&gt; else, 20 November")
    assert "1,204 new images in 2 shards" in body["text"]
    kinds = [block["type"] for block in body["blocks"]]
    assert kinds == ["header", "section", "section", "context", "actions"]
    buttons = body["blocks"][-1]["elements"]
    assert [button["url"] for button in buttons] == [
        "https://results.example/nights/x/index.html",
        "http://127.0.0.1/run",
    ]
    labels = body["blocks"][2]["text"]["text"].splitlines()
    assert labels[2] == "barn: 1 entered, 1 left, 1 moved"
    assert labels[-1] == "and 2 labels more"


def test_a_quiet_night_is_one_sentence(digest: Digest) -> None:
    body = message(quiet(digest), "/root/nights/x/index.html", None)
    assert "Nothing new tonight" in body["text"]
    assert [block["type"] for block in body["blocks"]] == ["header", "section", "context"]


@pytest.mark.parametrize(
    "label", [*LABELS, "&" * 300, "<!channel>", "*@here*", "\n\n<https://x|y>"]
)
def test_hostile_labels_are_escaped_and_fit(digest: Digest, label: str) -> None:
    changes = tuple(
        LabelChanges(label=f"{label}{n}", page="x", page_before="x", entered=(0,))
        for n in range(50)
    )
    night = replace(digest, title=label * 3, new_labels=(label,) * 50, changes=changes)
    body = message(night, f"/root/{label}/index.html", f"javascript:{label}")
    assert not re.search(r"[<>]|&(?!amp;|lt;|gt;)", json.dumps(body, ensure_ascii=False))
    assert len(body["text"]) <= 3000 and len(body["blocks"]) <= 50
    for block in body["blocks"]:
        texts = block["elements"] if block["type"] == "context" else [block["text"]]
        limit = 150 if block["type"] == "header" else 3000
        for text in texts:
            assert text["type"] == "plain_text" and 0 < len(text["text"]) <= limit
