"""The server of a root: what a browser gets, what nobody gets, and how the real command ends."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from PIL import Image
from running_root import begin, finish, make_page, measure
from starlette.testclient import TestClient

from diffmining_core.errors import InputError
from diffmining_core.report.served import served_file
from diffmining_core.store.ledger import retract
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import Failure, note_failure, plan_stage
from diffmining_core.store.status import run_status
from flows import serve as serving
from flows.serve import HEADERS, LOCAL_NAMES, Site, bound, is_loopback

REPOSITORY = Path(__file__).parents[2]
WAIT = 20.0


def client(url: str, hosts: tuple[str, ...] | None = LOCAL_NAMES) -> TestClient:
    site = Site(open_root(url, create=False), "two buildings")
    return TestClient(site.app(hosts), "http://localhost:8610", follow_redirects=False)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A root with a page, and the folder of its files; leave it as it is."""
    folder = tmp_path_factory.mktemp("served")
    url = str(folder / "root")
    measure(url, begin(url, folder))
    page = make_page(url)
    finish(url)
    return url, page


def test_the_gallery_is_served_as_it_was_published(served: tuple[str, str]) -> None:
    url, folder = served
    browser = client(url)
    page = browser.get("/")
    assert page.status_code == 200
    assert page.content == Path(url, "index.html").read_bytes()
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    links = set(re.findall(r'(?:href|src)="([^"#:]+)"', page.text))
    assert any(link.endswith(".css") for link in links)
    kinds = Counter(browser.get(f"/{link}").headers["content-type"] for link in links)
    assert {"text/css; charset=utf-8", "image/webp", "text/html; charset=utf-8"} <= kinds.keys()
    for link in links:
        found = browser.get(f"/{link}")
        assert (found.status_code, found.content) == (200, Path(url, link).read_bytes()), link
        assert "immutable" in found.headers["cache-control"] or "/" not in link
    label = next(link for link in links if "/labels/" in link and link.endswith(".html"))
    inner = re.findall(r'(?:href|src)="\.\./([^"#:]+)"', browser.get(f"/{label}").text)
    assert inner
    assert {browser.get(f"/{folder}/{link}").status_code for link in inner} == {200}


def test_a_browser_that_has_a_file_gets_it_no_second_time(served: tuple[str, str]) -> None:
    url, folder = served
    browser = client(url)
    for path in ("/", f"/{folder}/static/site.css"):
        first = browser.get(path)
        again = browser.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
        head = browser.head(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(first.content))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_done_but_reading(served: tuple[str, str], method: str) -> None:
    browser = client(served[0])
    for path in ("/", "/status", "/summary.json", f"/{served[1]}/index.html"):
        assert browser.request(method, path).status_code == 405


def test_nothing_else_of_the_root_is_told(served: tuple[str, str], tmp_path: Path) -> None:
    url, folder = served
    outside = Path(url).parent / "outside.html"
    outside.write_text("secret")
    browser = client(url)
    for stored in sorted(Path(url).rglob("*")):
        rel = stored.relative_to(url).as_posix()
        of_page = rel.startswith(f"{folder}/") and stored.name not in ("results.json", "root.html")
        allowed = stored.is_file() and (of_page or rel == "index.html")
        assert browser.get(f"/{quote(rel)}").status_code == (200 if allowed else 404), rel
    for path in (
        "/%2e%2e/outside.html", "/..%2foutside.html", "http://localhost//outside.html",
        f"/{folder}/%2e%2e/%2e%2e/%2e%2e/index.html", f"/{folder}/static/..%2findex.html",
        f"/{folder}/", f"/{folder}", "/nights/%2e%2e/index.html",
        f"/{quote(str(outside))}", "/index.html%00", "/index.html\\", "/.index.html",
        "/static/%2e%2e", "/static/status.html", "/so-far/none.webp",
        "/report/0/attempt-0/index.html",
    ):  # fmt: skip
        answer = browser.get(path)
        assert answer.status_code == (200 if path == f"/{folder}/" else 404), path
        assert "secret" not in answer.text
    assert browser.get("/summary.json").status_code == 404, "there is none"
    root = open_root(url)
    for name in ("../outside.html", f"{folder}/../../../index.html", "nights/../index.html", ""):
        assert served_file(root, name) is None


def test_an_attempt_that_is_not_published_is_not_served(tmp_path: Path) -> None:
    url = str(tmp_path / "root")
    begin(url, tmp_path)
    folder = make_page(url)
    left = Path(url, folder).parent / f"attempt-{0:032x}"
    left.mkdir()
    (left / "index.html").write_text("half")
    browser = client(url)
    assert browser.get(f"/{folder}/index.html").status_code == 200
    assert browser.get(f"/{left.relative_to(url).as_posix()}/index.html").status_code == 404
    retract(open_root(url), *folder.split("/")[:2])
    assert client(url).get(f"/{folder}/index.html").status_code == 404


def test_no_link_leads_out_of_the_root(tmp_path: Path) -> None:
    url = str(tmp_path / "root")
    begin(url, tmp_path)
    folder = make_page(url)
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("secret.html", "index.html", "site.css"):
        (outside / name).write_text("secret")
    nights = Path(url, "nights")
    nights.mkdir()
    (nights / "index.html").write_text("nights")
    (nights / "inside.html").symlink_to("index.html")
    (nights / "out.html").symlink_to(outside / "secret.html")
    (nights / "folder").symlink_to(outside)
    (nights / "loop.html").symlink_to("loop.html")
    Path(url, "pages.html").symlink_to("../outside/secret.html")
    Path(url, "index.html").unlink()
    Path(url, "index.html").symlink_to(outside / "secret.html")
    style = Path(url, folder, "static", "site.css")
    (outside / "site.css").write_bytes(style.read_bytes())  # whose digest is the one expected
    style.unlink()
    style.symlink_to(outside / "site.css")
    (tmp_path / "led").symlink_to(url)
    for browser in (client(url), client(str(tmp_path / "led"))):
        assert browser.get("/nights/inside.html").text == "nights"
        for path in ("/nights/out.html", "/nights/folder/secret.html", "/nights/folder/",
                     "/nights/loop.html", "/pages.html", "/index.html",
                     f"/{folder}/static/site.css"):  # fmt: skip
            assert browser.get(path).status_code == 404, path
        assert "The gallery comes when the run is done" in browser.get("/").text
        assert 'data-gallery="no"' in browser.get("/status").text


def test_no_answer_and_no_line_of_the_terminal_has_a_full_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = str(tmp_path / "root")
    begin(url, tmp_path)
    folder = make_page(url)
    note_failure(open_root(url), "typicality", "0" * 32, Failure(f"{tmp_path}/photos/a.jpg: bad"))
    Path(url, folder, "static", "site.css").write_text("other")
    browser = client(url)
    answers = [
        browser.get(path)
        for path in ("/", "/status", "/status.json", f"/{folder}/static/site.css", "/nothing")
    ]
    assert "a.jpg: bad" in answers[1].text
    assert answers[2].json()["root"] == "root"

    def broken(root: Root, now: float) -> list[object]:
        raise LookupError(f"{tmp_path}/root/plans")

    monkeypatch.setattr(serving, "run_status", broken)
    answers.append(client(url).get("/status"))
    assert [answer.status_code for answer in answers] == [200, 200, 200, 503, 404, 500]
    for answer in answers:
        assert str(tmp_path) not in answer.text
    assert len(caplog.messages) == 2
    assert "site.css is corrupt" in caplog.messages[0]
    assert caplog.messages[1] == "'/status' cannot be answered: LookupError('plans')"
    assert str(tmp_path) not in caplog.text


def test_every_answer_has_the_strict_headers(served: tuple[str, str]) -> None:
    browser = client(served[0])
    for path in ("/", "/status", "/status.json", "/static/site.css", "/nothing", "/summary.json"):
        headers = browser.get(path).headers
        for name in HEADERS:
            assert name in headers, (path, name)
        assert "frame-ancestors 'self'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
    assert "connect-src 'self'" in browser.get("/status").headers["content-security-policy"]


def test_a_name_that_was_led_here_from_elsewhere_gets_nothing(served: tuple[str, str]) -> None:
    browser = client(served[0])
    for host in ("evil.example", "evil.example:8610", "", "localhost.evil.example", "[::2"):
        assert browser.get("/", headers={"Host": host}).status_code == 421, host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8610", "[::1]:8610"):
        assert browser.get("/", headers={"Host": host}).status_code == 200, host
    assert client(served[0], None).get("/", headers={"Host": "lab.example"}).status_code == 200


def waited(until: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT
    while not until():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_until_there_is_a_page_the_status_stands_in_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "STATUS_SECONDS", 0.0)
    monkeypatch.setattr(serving, "STRIPS_SECONDS", 0.0)
    url = str(tmp_path / "root")
    shard = begin(url, tmp_path)
    browser = client(url)
    page = browser.get("/").text
    assert "two buildings" in page
    assert 'data-home="yes"' in page
    assert "The gallery comes when the run is done" in page

    measure(url, shard)
    note_failure(open_root(url), "typicality", "0" * 64, Failure("<i>out of memory</i>"))
    keys = [n.removesuffix(".json") for n in open_root(url).names("manifests/typicality")]
    plan_stage(open_root(url), "typicality", [*keys, "0" * 64, "1" * 64])
    waited(lambda: "Highest so far" in browser.get("/").text)
    page = browser.get("/").text
    assert "Typicality: 1 of 3" in page
    assert "&lt;i&gt;out of memory" in page and "<i>out" not in page
    assert "&lt;b&gt;barn" in page and "<b>barn" not in page
    pictures = re.findall(r'src="(/so-far/[0-9a-f]{32}\.webp)" width="(\d+)" height="(\d+)"', page)
    assert len(pictures) == 2
    for path, width, height in pictures:
        found = browser.get(path)
        assert "immutable" in found.headers["cache-control"]
        assert Image.open(io.BytesIO(found.content)).size == (int(width), int(height)) == (196, 96)

    make_page(url)
    gallery = browser.get("/")
    assert 'class="run-bar"' in gallery.text
    assert '<a href="/status">' in gallery.text
    assert gallery.headers["cache-control"] == "no-cache"
    assert 'class="run-bar"' not in Path(url, "index.html").read_text()
    status = browser.get("/status").text
    assert 'data-home="no"' in status and '<a href="/">The gallery</a>' in status
    plan_stage(open_root(url), "typicality", keys)
    assert 'class="run-bar"' not in browser.get("/").text


def test_the_status_is_one_listing_for_many_browsers(
    served: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def counted(root: Root, now: float) -> list[object]:
        asked.append(now)
        return list(run_status(root, now))

    monkeypatch.setattr(serving, "run_status", counted)
    browser = client(served[0])
    said = [browser.get("/status.json").json() for _ in range(5)]
    assert len(asked) == 1
    assert said[0]["run"]["state"] == "finished"
    stages = {stage["stage"]: stage["done"] for stage in said[0]["stages"]}
    assert stages == {"index": 1, "dataset": 1, "typicality": 2, "patches": 2, "report": 1}


def test_a_root_in_memory_is_served_too(tmp_path: Path) -> None:
    url = "memory://served/root"
    begin(url, tmp_path)
    folder = make_page(url)
    browser = client(url)
    assert browser.get("/").status_code == 200
    assert browser.get(f"/{folder}/static/site.css").status_code == 200
    assert browser.get(f"/{folder}/results.json").status_code == 404


def test_a_root_on_s3_is_served_too(rgw_bucket: str, tmp_path: Path) -> None:
    url = f"s3://{rgw_bucket}/served"
    shard = begin(url, tmp_path)
    measure(url, shard)
    browser = client(url)
    waited(lambda: "Highest so far" in browser.get("/").text)
    folder = make_page(url)
    page = browser.get("/")
    assert page.status_code == 200
    assert f"{folder}/static/site.css" in page.text
    assert browser.get(f"/{folder}/static/site.css").status_code == 200
    assert browser.get("/nights/index.html").status_code == 404
    assert browser.get("/report").status_code == 404


def test_storage_that_does_not_answer_is_a_sentence(tmp_path: Path) -> None:
    url = str(tmp_path / "root")
    begin(url, tmp_path)
    folder = make_page(url)
    Path(url, folder, "static", "site.css").write_text("other")
    answer = client(url).get(f"/{folder}/static/site.css")
    assert answer.status_code == 503
    assert answer.text.startswith("The results cannot be read now: ")
    assert answer.headers["retry-after"]


def test_what_cannot_be_listened_at_is_one_sentence() -> None:
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot"),
            bound("127.0.0.1", port),
        ):
            pass
    with pytest.raises(InputError, match="from 0, for any"), bound("127.0.0.1", 99999):
        pass
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "lab")] == [
        True, True, True, False, False
    ]  # fmt: skip


def test_the_command_prints_its_address_and_ends_quietly(served: tuple[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "flows", "serve", served[0], "--port", "0"],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.fullmatch(r"Serving root at (http://127\.0\.0\.1:\d+/) \(Ctrl-C.*\n", line)
    assert address is not None
    assert httpx.get(address[1]).status_code == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "", "")
