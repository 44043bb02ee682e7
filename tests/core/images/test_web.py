from __future__ import annotations

import math
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from image_server import PHOTO, ImageServer, image_server

from diffmining_core.errors import UnreadableError
from diffmining_core.images import web
from diffmining_core.images.addresses import member_uri, read_bytes
from diffmining_core.images.reach import ALSO, MAX_IMAGE_MB, set_reach
from diffmining_core.images.shards import FoundImage, index_shard


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests allowed or learnt of hosts is forgotten; tries follow each other at once."""
    for variable in (ALSO, MAX_IMAGE_MB):
        monkeypatch.setenv(variable, "")
    monkeypatch.setattr(web, "_hosts", {})
    monkeypatch.setattr(web, "BACKOFF_SECONDS", 0.01)


@pytest.fixture
def server() -> Iterator[ImageServer]:
    with image_server() as running:
        set_reach([running.url], 512)
        yield running


def test_an_image_is_read(server: ImageServer) -> None:
    assert read_bytes(f"{server.url}/a.png") == PHOTO
    assert server.headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert server.headers["Accept-Encoding"] == "identity"


def test_connections_are_kept(server: ImageServer) -> None:
    for _ in range(5):
        read_bytes(f"{server.url}/a.png")
    assert server.connections == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 407, 418, 451, 501])
def test_a_refusal_is_final_and_of_this_image(server: ImageServer, status: int) -> None:
    with pytest.raises(UnreadableError, match=f"127.0.0.1 answers {status}"):
        read_bytes(f"{server.url}/status/{status}")
    assert server.asked[f"/status/{status}"] == 1


@pytest.mark.parametrize("status", [404, 410])
def test_what_is_gone_is_not_there(server: ImageServer, status: int) -> None:
    with pytest.raises(FileNotFoundError, match=f"answers {status}"):
        read_bytes(f"{server.url}/status/{status}")
    assert server.asked[f"/status/{status}"] == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(server: ImageServer, status: int) -> None:
    with pytest.raises(UnreadableError, match=f"answers {status} .*, asked 4 times"):
        read_bytes(f"{server.url}/status/{status}")
    assert server.asked[f"/status/{status}"] == 4


def test_a_server_that_asks_for_a_pause_gets_it(server: ImageServer) -> None:
    begun = time.monotonic()
    assert read_bytes(f"{server.url}/busy/a.png?times=2&after=1") == PHOTO
    assert 2 <= time.monotonic() - begun < 10
    assert server.asked["/busy/a.png"] == 3


def test_a_pause_holds_for_all_images_of_a_host(server: ImageServer) -> None:
    with ThreadPoolExecutor(8) as pool:
        uris = [f"{server.url}/busy/{i}.png?times=1&after=1" for i in range(8)]
        begun = time.monotonic()
        assert list(pool.map(read_bytes, uris)) == [PHOTO] * 8
    assert 1 <= time.monotonic() - begun < 10


def test_a_pause_until_a_date_is_understood() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    wait = web._retry_after(later)
    assert wait is not None and 17 < wait <= 20
    assert web._retry_after("soon") is None
    assert web._retry_after("-5") == 0
    assert web._retry_after("9" * 400) == math.inf
    assert web._retry_after("9" * 5000) is None
    assert web._retry_after(f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT") is None


def test_a_pause_that_is_too_long_is_not_waited_for(server: ImageServer) -> None:
    begun = time.monotonic()
    with pytest.raises(UnreadableError, match="answers 503"):
        read_bytes(f"{server.url}/status/503?after=3600")
    assert time.monotonic() - begun < 1
    assert server.asked["/status/503"] == 1


def test_a_redirect_is_followed_to_an_allowed_place_only(server: ImageServer) -> None:
    assert read_bytes(f"{server.url}/to/?/b.png") == PHOTO
    with image_server() as other:
        with pytest.raises(UnreadableError, match=f"may reach: {other.url}/$"):
            read_bytes(f"{server.url}/to/?{other.url}/b.png")
        assert not other.asked
        set_reach([f"{other.url}/b.png"], 512)
        assert read_bytes(f"{server.url}/to/?{other.url}/b.png") == PHOTO


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "//[:/"])
def test_a_redirect_to_no_web_address_is_refused(server: ImageServer, target: str) -> None:
    with pytest.raises(UnreadableError, match="redirects to what is no web address"):
        read_bytes(f"{server.url}/to/?{target}")


def test_a_circle_ends(server: ImageServer) -> None:
    with pytest.raises(UnreadableError, match="redirects in a circle"):
        read_bytes(f"{server.url}/circle/a")


def test_an_endless_body_is_cut_at_the_limit(server: ImageServer) -> None:
    set_reach([], 3)
    with pytest.raises(UnreadableError, match="over 3 MB; --max-image-mb allows larger"):
        read_bytes(f"{server.url}/endless")
    assert server.asked["/endless"] == 1


def test_a_slow_body_ends_at_the_deadline(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DEADLINE_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(UnreadableError, match="did not send all of it in 1 seconds"):
        read_bytes(f"{server.url}/drip")
    assert time.monotonic() - begun < 10


def test_a_silent_server_ends_at_the_deadline(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DEADLINE_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(UnreadableError, match="does not answer in time"):
        read_bytes(f"{server.url}/silent")
    assert time.monotonic() - begun < 10


def test_endless_headers_end_at_the_deadline(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "DEADLINE_SECONDS", 1)
    begun = time.monotonic()
    with pytest.raises(UnreadableError, match="does not answer in time"):
        read_bytes(f"{server.url}/headers")
    assert time.monotonic() - begun < 10


def test_a_body_that_breaks_off_is_no_image(server: ImageServer) -> None:
    with pytest.raises(UnreadableError, match=r"breaks off \(.*asked 4 times"):
        read_bytes(f"{server.url}/short")


def test_a_host_that_is_gone_costs_its_time_once() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen
        place = f"http://127.0.0.1:{closed.getsockname()[1]}"
        set_reach([place], 512)
        begun = time.monotonic()
        table = index_shard([FoundImage(f"{place}/{i}.png", "rome", "") for i in range(500)])
    assert time.monotonic() - begun < 10
    assert set(table.column("set_aside").to_pylist()) <= {
        "127.0.0.1 cannot be reached: it takes no connection",
        "127.0.0.1 cannot be reached: it takes no connection, asked 4 times",
    }


def test_a_host_that_serves_nothing_is_given_up(server: ImageServer) -> None:
    found = [FoundImage(f"{server.url}/status/503", f"label {i}", "x") for i in range(100)]
    for image in found:
        with pytest.raises(UnreadableError):
            read_bytes(image.uri)
    assert server.asked["/status/503"] == 4 * web.GIVEN_UP


def test_a_name_that_nobody_has_is_of_the_image() -> None:
    with pytest.raises(UnreadableError, match=r"no-such-host\.invalid (is no host|cannot be res)"):
        read_bytes("https://no-such-host.invalid/a.png")


@pytest.mark.parametrize(
    "uri", ["http:///a.png", "https://[::1/a.png", "http://a b/c.png", "http://host:99999/a.png"]
)
def test_an_address_that_is_none_is_of_the_image(uri: str) -> None:
    with pytest.raises(UnreadableError):
        read_bytes(uri)


def resolve(monkeypatch: pytest.MonkeyPatch, *answers: str) -> list[str]:
    """Stand in for the name server: `photos.test` has these addresses, one at each question."""
    real, asked, left = socket.getaddrinfo, [], list(answers)

    def answer(host: str, port: int, *args: Any, **options: Any) -> Any:
        if host != "photos.test":
            return real(host, port, *args, **options)
        asked.append(host)
        return real(left.pop(0) if len(left) > 1 else left[0], port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1",
     "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "100.64.0.1", "224.0.0.1"],
)  # fmt: skip
def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    resolve(monkeypatch, address)
    set_reach(["http://photos.test/"], 512)
    with pytest.raises(UnreadableError, match="outside what the dataset may reach: http://"):
        read_bytes("http://photos.test/a.png")


def test_a_name_that_leads_inside_is_reached_where_both_are_allowed(
    server: ImageServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, "127.0.0.1")
    uri = f"http://photos.test:{server.server_port}/a.png"
    assert read_bytes(uri) == PHOTO
    assert server.headers["Host"] == f"photos.test:{server.server_port}"


def test_a_name_is_resolved_once(server: ImageServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve(monkeypatch, "127.0.0.1", "10.1.2.3")
    for i in range(3):
        assert read_bytes(f"http://photos.test:{server.server_port}/{i}.png") == PHOTO
    assert len(asked) == 1


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:7f00:1]"])
def test_a_number_in_another_spelling_is_the_same_host(server: ImageServer, host: str) -> None:
    assert read_bytes(f"http://{host}:{server.server_port}/a.png") == PHOTO
    with pytest.raises(UnreadableError, match=r"may reach: http://127\.0\.0\.1:1/"):
        read_bytes(f"http://{host}:1/a.png")


def test_who_may_read_is_told_to_the_host_but_not_to_others(server: ImageServer) -> None:
    place = server.url.removeprefix("http://")
    assert read_bytes(f"http://me:pa%20ss@{place}/a.png") == PHOTO
    assert server.headers["Authorization"] == "Basic bWU6cGEgc3M="
    with image_server() as other:
        set_reach([other.url], 512)
        read_bytes(f"http://me:pa%20ss@{place}/to/?{other.url}/a.png")
        assert "Authorization" not in other.headers


def test_a_part_of_a_file_must_be_what_was_asked_for(server: ImageServer) -> None:
    with pytest.raises(UnreadableError, match="answers 200"):  # it knows no ranges
        read_bytes(member_uri(f"{server.url}/x.tar", 0, 5, "a.png"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `localhost`, signed by itself, with its key."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(file), "-out", f"{file}.crt"),
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_a_certificate_is_checked_by_name(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with image_server(certificate) as server:
        named = f"https://localhost:{server.server_port}"
        set_reach([named, server.url], 512)
        with pytest.raises(UnreadableError, match=r"no trusted connection .*self.signed"):
            read_bytes(f"{named}/a.png")
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        web._pools.clear()
        assert read_bytes(f"{named}/a.png") == PHOTO
        with pytest.raises(UnreadableError, match="no trusted connection"):
            read_bytes(f"{server.url}/a.png")  # which the certificate does not name
