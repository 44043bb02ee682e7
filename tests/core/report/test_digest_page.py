from __future__ import annotations

import base64
import io
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from drawn_nights import LABELS, drawn_digest, night_name, quiet, strips, write_nights
from PIL import Image

from diffmining_core.report.digest import (
    MARKDOWN_BYTES,
    Digest,
    Work,
    markdown,
    render_night,
    render_nights,
    started,
)
from diffmining_core.report.escaping import cell_text, markdown_text, one_line, slack_text


class Elements(HTMLParser):
    """The elements of a page, its links and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("night")


@pytest.fixture(scope="module")
def digest(folder: Path) -> Digest:
    return drawn_digest(folder)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nights(tmp_path_factory.mktemp("root"))


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_page_says_what_is_new_and_what_it_cost(digest: Digest) -> None:
    said = words(Elements(render_night(digest, "night/k/attempt", None)).text)
    assert "20 November 2026" in said and "02:00 UTC" in said
    for part in (
        "new images 1,204 in 2 shards",
        "gone 3 images",
        "set aside 1 why",
        "entered 10 clusters",
        "left 10 clusters",
        "moved 10 in rank",
        "GPU hours 1.24 3.10 EUR",
        "model kept",
        "truncated: it ends early",
    ):
        assert part in said, part
    assert said.count("new label") == 2 + 1


def test_without_a_price_no_cost_is_shown_and_without_a_gpu_it_says_so(digest: Digest) -> None:
    free = replace(digest, work=replace(digest.work, price=0.0))
    said = Elements(render_night(free, "night/k/attempt", None)).text
    assert "GPU hours" in said and "EUR" not in said and "cost" not in said
    cpu = Work(gpu_seconds=0, cpu_seconds=7200, price=2.5, currency="EUR")
    said = words(Elements(render_night(replace(digest, work=cpu), "n", None)).text)
    assert "CPU hours 2.00 no GPU" in said
    assert (cpu.hours, cpu.cost) == ("2.00 CPU hours", None)


@pytest.mark.parametrize(
    ("seconds", "hours"),
    [(0, "0"), (1, "0.001"), (20, "0.006"), (3600, "1.00"), (1e5, "27.8"), (1e6, "278")],
)
def test_hours_have_as_many_digits_as_are_read(seconds: float, hours: str) -> None:
    work = Work(gpu_seconds=seconds, cpu_seconds=0, price=0, currency="")
    assert work.hours == f"{hours} GPU hours"


def test_a_quiet_night_says_so_and_shows_nothing(digest: Digest) -> None:
    page = Elements(render_night(quiet(digest), "night/k/attempt", None))
    assert "Nothing new tonight" in page.text
    assert "entered" not in page.text and "image" not in page.tags
    assert quiet(digest).row().sentence == "Nothing new tonight: the results are as they were."


def test_every_link_leads_somewhere(pages: Path) -> None:
    for page in sorted(pages.rglob("*.html")):
        links = set(Elements(page.read_text()).links)
        for link in links:
            target = page.parent / link.split("#")[0] if not link.startswith("#") else page
            assert target.exists(), f"{page.relative_to(pages)} leads to {link}"
        assert any(link.endswith("static/site.css") for link in links)
    night = Elements((pages / night_name(1) / "index.html").read_text()).links
    assert {f"../{night_name(0)}/index.html", f"../{night_name(2)}/index.html"} <= set(night)
    assert {"../index.html", "../../index.html"} <= set(night)


def test_hostile_labels_and_names_are_only_text(digest: Digest) -> None:
    for text in (
        render_night(digest, "night/k/attempt", None),
        render_nights(digest.title, {"night/k/attempt": digest.row()}),
    ):
        page = Elements(text)
        assert not {"script", "i"} & set(page.tags)
        assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
        assert not [link for link in page.links if ":" in link or "etc/passwd" in link]
        assert "default-src 'none'" in text
    said = Elements(render_night(digest, "night/k/attempt", None)).text
    assert all(label in said for label in LABELS)


def test_the_newest_night_comes_first_and_quiet_ones_are_a_line(pages: Path) -> None:
    page = (pages / "index.html").read_text()
    nights = re.findall(r'<a class="night([^"]*)" href="([^"]+)/index.html"', page)
    assert nights == [("", night_name(2)), (" night-quiet", night_name(1)), ("", night_name(0))]
    assert page.count("Nothing new") == 1
    assert "1,204 new images in 2 shards, 3 images gone, 1 relabelled, 1 set aside" in page
    assert "Clusters: 10 entered, 10 left, 10 moved" in page


def test_a_thousand_nights_are_drawn_at_once(digest: Digest) -> None:
    rows = {f"night/{n}/attempt": replace(digest.row(), night=night_name(n)) for n in range(1000)}
    begun = time.process_time()
    page = render_nights("all", rows)
    assert time.process_time() - begun < 2
    assert page.count('loading="lazy"') == 1000
    assert len(page) < 1_000_000


def test_night_names_are_times() -> None:
    assert started("2026-11-21T02-00Z").isoformat() == "2026-11-21T02:00:00"
    for name in ("2026-11-21", "../2026-11-21T02-00Z", "2026-13-01T00-00Z"):
        with pytest.raises(ValueError, match="does not match format"):
            started(name)


def test_markdown_has_the_pictures_in_it_and_stays_small(digest: Digest, folder: Path) -> None:
    said = markdown(digest, strips(folder), "s3://bucket/root/nights/x/index.html")
    assert len(said.encode()) < MARKDOWN_BYTES < 200_000
    pictures = re.findall(r"!\[\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", said)
    assert len(pictures) == len(LABELS)
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            assert image.format == "PNG" and image.height == 40


def test_markdown_leaves_out_pictures_that_do_not_fit(digest: Digest) -> None:
    said = markdown(digest, [bytes(30_000)] * len(LABELS), "page")
    assert len(said.encode()) < MARKDOWN_BYTES
    assert said.count("data:image/png") == 4
    assert "6 more entered; the page shows them." in said


def test_hostile_labels_are_only_text_in_markdown(digest: Digest, folder: Path) -> None:
    said = markdown(digest, strips(folder), "/root/](javascript:alert(1))<b>")
    plain = re.sub(r"\\.", "", re.sub(r"!\[\]\(data:image/png;base64,[^)]*\)", "", said))
    assert not re.search(r"[<>`\[\]()]|javascript:|https?:", plain)
    rows = [line for line in plain.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {3, 5}, "no label ends a cell"


def test_text_of_others_is_one_plain_line() -> None:
    assert one_line("a\n\t b\x00\u202ec") == "a b c"
    assert one_line("x" * 100) == f"\u2068{'x' * 79}…\u2069"
    assert one_line("שלום") == "\u2068שלום\u2069"
    assert markdown_text("a|b_c\\") == r"a\|b\_c\\"
    assert cell_text("<b> [a](b)") == "<\u200bb> [a]\u200b(b)"
    assert slack_text("<!channel> & co") == "&lt;!channel&gt; &amp; co"
    assert len(slack_text("&" * 500, 150)) <= 150 and slack_text("&" * 500, 150).endswith("…\u2069")
    assert not re.search(r"&(?!amp;)", slack_text("&" * 500, 150)), "no entity is cut"
