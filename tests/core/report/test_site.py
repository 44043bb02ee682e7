from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from drawn_site import HOSTILE, DrawnImages, drawn_source
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.report import render_index, write_site
from diffmining_core.report.page import fact_groups
from diffmining_core.report.source import Losses, label_slugs


class Page(HTMLParser):
    """What a page refers to, its elements' attributes, its text and its data block."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, css_class: str = "") -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag
            and (not css_class or css_class in (attributes.get("class") or "").split(" "))
        ]


def page_data(path: Path) -> dict[str, object]:
    found = re.search(
        r'<script type="application/json" id="page-data">(.*?)</script>',
        path.read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found
    data = json.loads(found[1])
    assert isinstance(data, dict)
    return data


def referred_files(page: Path) -> Iterator[Path]:
    links = [link for link in Page(page).links if link and not link.startswith("#")]
    if page.parent.name == "labels":
        images = page_data(page)["images"]
        assert isinstance(images, list)
        for image in images:
            links += [image[key] for key in ("source", "overlay", "before") if image[key]]
    for link in (link.partition("#")[0] for link in links):
        assert not urllib.parse.urlsplit(link).scheme
        yield (page.parent / urllib.parse.unquote(link)).resolve()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_site(drawn_source(), folder)
    return folder


def test_overview_has_a_card_per_label_and_the_measured_numbers(site: Path) -> None:
    page = Page(site / "index.html")
    assert len(page.all("li", "card")) == 2
    for words in ("barn", "tower", "0.610", "0.085", "90 %", "k lowered to 2", "1,234,567"):
        assert words in page.text
    assert "best cluster 88 % pure" in page.text
    assert "truncated: it ends early" in page.text
    assert [line["class"] for line in page.all("polyline")] == [
        "curve-raw", "curve", "curve-seen", "curve-held-out",
    ]  # fmt: skip
    named = [str(chart["aria-label"]) for chart in page.all("svg") if "aria-label" in chart]
    assert named[0].endswith("0.21 on held-out images")
    assert len(page.all("rect", "bin-first")) == 9
    assert len(page.all("rect", "bin-last")) == 10


def test_signs_are_said_first_the_gravest_first_with_what_to_do_and_a_picture(site: Path) -> None:
    page = Page(site / "index.html")
    assert [sign["id"] for sign in page.all("article", "sign")] == [
        "sign-watermark", "sign-memorised", "sign-mixed",
    ]  # fmt: skip
    text = " ".join(page.text.split())
    assert text.index("Before you trust this") < text.index("Does it find what was planted?")
    assert text.count("Crop or paint over the mark") == 1, "advice that all share is said once"
    assert "Clusters are mixed & <b>loose</b>." in text
    links = [link["href"] for link in page.all("a", "of-label")]
    assert links == ["labels/barn.html", "labels/tower.html"] * 2
    pictures = [image for image in page.all("img") if "signs/" in str(image["src"])]
    assert len(pictures) == 2
    with Image.open(site / "signs" / "sign-1.webp") as picture:
        assert picture.size == (int(pictures[0]["width"] or 0), int(pictures[0]["height"] or 0))
    numbers = json.loads((site / "data" / "summary.json").read_text(encoding="utf-8"))
    assert [sign["name"] for sign in numbers["signs"]].count("watermark") == 2


def test_signs_of_many_labels_are_folded(tmp_path: Path) -> None:
    write_site(drawn_source(labels=["barn", "tower", "mill", "silo", "shed"]), tmp_path)
    assert "3 more labels" in Page(tmp_path / "index.html").text


def test_without_signs_there_is_no_box(tmp_path: Path) -> None:
    write_site(drawn_source(signs=[]), tmp_path)
    page = Page(tmp_path / "index.html")
    assert not page.all("section", "signs")
    assert not (tmp_path / "signs").exists()


def test_without_held_out_images_the_chart_has_the_training_loss_alone(tmp_path: Path) -> None:
    losses = Losses(training=[(step, 0.5) for step in range(9)])
    write_site(dataclasses.replace(drawn_source(), losses=losses), tmp_path)
    page = Page(tmp_path / "index.html")
    assert len(page.all("polyline")) == 2
    assert "held-out images, fixed noise" not in page.text
    assert "By timestep" not in page.text


def test_generated_images_are_shown_where_there_are_some(site: Path, tmp_path: Path) -> None:
    assert "after step 500" in (site / "index.html").read_text()
    assert (site / "figures" / "generated.png").stat().st_size > 0
    write_site(dataclasses.replace(drawn_source(), preview=None), tmp_path)
    assert "generated.png" not in (tmp_path / "index.html").read_text()


def test_an_image_of_two_labels_is_there_once_with_an_overlay_for_each(tmp_path: Path) -> None:
    drawn = DrawnImages()
    source = drawn_source(signs=[], drawn=drawn)
    shared = source.selection["image_id"][0].as_py()

    def with_both(table: pa.Table) -> pa.Table:
        """The first label's patches of one image under the other label too."""
        rows = table.filter(pc.equal(table["image_id"], shared)).to_pylist()
        return pa.concat_tables(
            [table, pa.Table.from_pylist([{**row, "label": "tower"} for row in rows], table.schema)]
        )

    both = dataclasses.replace(
        source,
        selection=with_both(source.selection),
        clusters=with_both(source.clusters),
        before=None,
        features=None,
        typicality=lambda image_id, label: drawn.maps[image_id] * (1 if label == "barn" else -1),
        typicality_before=None,
    )
    write_site(both, tmp_path)
    for label in ("barn", "tower"):
        images = page_data(tmp_path / "labels" / f"{label}.html")["images"]
        assert isinstance(images, list)
        (image,) = [image for image in images if image["id"] == shared]
        assert image["source"] == f"../images/{shared}.webp"
        assert image["overlay"] == f"../overlays/{label}/{shared}.webp"
    overlays = [tmp_path / "overlays" / label / f"{shared}.webp" for label in ("barn", "tower")]
    assert overlays[0].read_bytes() != overlays[1].read_bytes()
    for page in tmp_path.rglob("*.html"):
        assert all(path.is_file() for path in referred_files(page))


def test_overview_counts_all_images_mined_not_only_those_shown(site: Path) -> None:
    assert "<span>1,234 images</span>" in (site / "index.html").read_text()


def test_label_page_has_strips_side_by_side_and_ranked_clusters(site: Path) -> None:
    page = Page(site / "labels" / "barn.html")
    rows = [row["data-row"] for row in page.all("ul", "row")]
    assert rows == [
        f"{kind}, {when} finetuning"
        for kind in ("Highest", "Random", "Lowest")
        for when in ("before", "after")
    ] + ["Cluster 1", "Cluster 2", "Most typical image", "Least typical image"]
    assert len(page.all("a", "patch")) == 6 * 6 + 6 + 2 + 6 + 6
    assert "1 small cluster, fewer than 6 patches" in page.text


def test_without_a_base_model_strips_are_longer_and_nothing_is_said_of_before(
    tmp_path: Path,
) -> None:
    write_site(drawn_source(images_per_label=20, with_before=False), tmp_path)
    page = Page(tmp_path / "labels" / "barn.html")
    assert [row["data-row"] for row in page.all("ul", "row")][:3] == ["Highest", "Random", "Lowest"]
    assert len(page.all("a", "patch")) == 3 * 12 + 12 + 2 + 6 + 6
    assert not list(tmp_path.glob("overlays/*/*-before.webp"))


def test_black_patches_are_left_out_of_strips_only(site: Path) -> None:
    source = drawn_source()
    black = source.selection["uri"][7 * 3].as_py()  # the last of the first label's eight images
    page = Page(site / "labels" / "barn.html")
    names = [str(patch["aria-label"]) for patch in page.all("a", "patch")]
    strips, clusters = names[: 6 * 6], names[6 * 6 :]
    assert not any(Path(black).name in name for name in strips)
    assert any(Path(black).name in name for name in clusters)


def test_everything_referred_to_is_there_and_in_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        for path in referred_files(page):
            assert path.is_file(), path
            assert path.is_relative_to(site.resolve())


def test_nothing_inline_that_a_strict_policy_refuses(site: Path) -> None:
    for path in site.rglob("*.html"):
        page = Page(path)
        assert not page.all("style")
        for tag, attributes in page.elements:
            assert "style" not in attributes
            assert not any(name.startswith("on") for name in attributes)
            if tag == "script":
                assert attributes.get("src") or attributes.get("type") == "application/json"


def test_hostile_labels_are_text_and_never_paths(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "site"
    write_site(drawn_source(labels=HOSTILE), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["deep"]
    assert len(list(folder.glob("labels/*.html"))) == len(HOSTILE)
    overview = Page(folder / "index.html")
    for label, slug in label_slugs(HOSTILE).items():
        path = folder / "labels" / f"{slug}.html"
        assert label in Page(path).text
        assert label in overview.text
        assert page_data(path)["label"] == label
    for path in folder.rglob("*.html"):
        raw = path.read_text(encoding="utf-8")
        assert "<script>alert" not in raw
        assert "<img src=x" not in raw
        assert "<b>" not in raw
        for referred in referred_files(path):
            assert referred.is_file()
            assert referred.is_relative_to(folder.resolve())


def test_index_for_another_folder_level_differs_in_its_links_only(site: Path) -> None:
    source = drawn_source()
    here = (site / "index.html").read_text(encoding="utf-8")
    above = render_index(source, "report/abc/attempt-1/")
    assert above != here
    assert above.replace("report/abc/attempt-1/", "") == here


def test_pictures_are_what_they_should_be(site: Path) -> None:
    source = drawn_source()
    first = source.selection.to_pylist()[0]
    data = page_data(site / "labels" / "barn.html")
    assert data["unit"] == "×10⁻³"
    images = data["images"]
    assert isinstance(images, list)
    image = next(image for image in images if image["id"] == first["image_id"])
    labels = site / "labels"
    expected = source.load_pixels(first["uri"])
    with Image.open(labels / image["source"]) as shown:
        assert shown.size == (image["width"], image["height"]) == expected.shape[1::-1]
        assert np.abs(np.asarray(shown).astype(int) - expected).mean() < 6
    for overlay in ("overlay", "before"):
        with Image.open(labels / image[overlay]) as shown:
            assert shown.size == (image["width"] // 2, image["height"] // 2)
            assert shown.mode == "RGBA"


def test_patches_in_the_sprite_are_the_images_own(site: Path) -> None:
    source = drawn_source()
    page = Page(site / "labels" / "barn.html")
    data = page_data(site / "labels" / "barn.html")
    uris = {row["image_id"]: row["uri"] for row in source.selection.to_pylist()}
    views = [a for tag, a in page.elements if tag == "svg" and "viewbox" in a]
    tiles = [view for view in views if (view["viewbox"] or "").endswith(" 24 24")]
    patches = [patch for patch in page.all("a", "patch") if patch["data-box"]]
    assert len(tiles) == len(patches)
    with Image.open(site / "labels" / "barn" / "patches.webp") as picture:
        sprite = np.asarray(picture.convert("RGB")).astype(int)
    images = data["images"]
    assert isinstance(images, list)
    for view, patch in zip(tiles, patches, strict=True):
        left, top, side, _ = map(int, (view["viewbox"] or "").split())
        y, x, size = map(int, (patch["data-box"] or "").split())
        pixels = source.load_pixels(uris[images[int(patch["data-image"] or "")]["id"]])
        shown = sprite[top : top + side, left : left + side]
        assert np.abs(shown - pixels[y : y + size, x : x + size]).mean() < 8


def test_figures_and_numbers_are_beside_the_pages(site: Path) -> None:
    source = drawn_source()
    assert {path.name for path in (site / "figures").iterdir()} == {
        "generated.png",
        "overview.png",
        *(f"{label}-{what}.png" for label in ("barn", "tower") for what in ("strips", "clusters")),
    }
    assert pq.read_table(site / "data" / "clusters.parquet").equals(source.clusters)
    assert pq.read_table(site / "data" / "before.parquet").equals(source.before)
    summary = json.loads((site / "data" / "summary.json").read_text(encoding="utf-8"))
    assert summary["truth"]["average_precision"]["after"] == 0.61
    assert summary["labels"][0]["patches"] == 8
    assert pq.read_table(site / "data" / "images.parquet").num_rows == 16
    assert (site / "data" / "model-card.md").read_text().startswith("# A model of discs")


def test_each_image_is_read_a_bounded_number_of_times(tmp_path: Path) -> None:
    drawn = DrawnImages()
    write_site(drawn_source(drawn=drawn), tmp_path)
    assert max(drawn.read.values()) <= 1 + 2 * 3 + 2  # the page, the strips' walk, the ends


def test_a_label_without_any_patch_still_has_a_page(tmp_path: Path) -> None:
    source = drawn_source(labels=("barn",))
    changed = dataclasses.replace(source, labels=["barn", "empty"])
    write_site(changed, tmp_path)
    assert "No patches to show" in Page(tmp_path / "labels" / "empty.html").text
    assert "No patches" in Page(tmp_path / "index.html").text
    for path in tmp_path.rglob("*.html"):
        assert all(referred.is_file() for referred in referred_files(path))


def test_an_image_that_shrank_since_is_named(tmp_path: Path) -> None:
    drawn = DrawnImages()
    source = drawn_source(drawn=drawn)
    uri = source.selection["uri"][0].as_py()
    drawn.by_uri[uri] = drawn.by_uri[uri][:30, :30]
    with pytest.raises(InputError, match=r'0 "quoted".* is 30×30 px now'):
        write_site(source, tmp_path)


def test_facts_are_grouped_and_written_plainly() -> None:
    facts = drawn_source().facts
    assert fact_groups({**facts, "cached": True, "seconds": 1.23456, "gpu": None}) == [
        (
            "Run",
            [
                ("model", "tiny & <i>built in</i>"),
                ("unet forwards", "1,234,567"),
                ("cached", "yes"),
                ("seconds", "1.235"),
                ("gpu", "–"),
            ],
        ),
        ("Parameters", [("draws", "100"), ("t range", "0.1, 0.7"), ("finetune · steps", "800")]),
        ("Prompts", [("null", "(empty)")]),
    ]
