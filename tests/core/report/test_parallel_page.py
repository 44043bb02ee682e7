"""The page of a parallel dataset, written from drawn squares."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn_parallel import MEMBERS, SIZE, drawn_parallel, square
from drawn_site import HOSTILE
from PIL import Image

from diffmining_core.clusters.joint import JOINT_SCHEMA
from diffmining_core.clusters.trend import TREND_SCHEMA
from diffmining_core.errors import InputError
from diffmining_core.report.parallel import (
    NUMBERS,
    OVERVIEW,
    ROWS,
    SEQUENCES,
    TREND,
    markdown,
    numbers,
    render_parallel,
    write_parallel,
)
from diffmining_core.report.parallel_figures import FigureRow, Sheet, labels_figure

LABELS = ["barn", "tower", *HOSTILE[:2]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    write_parallel(drawn_parallel(LABELS), folder)
    return folder


@pytest.fixture(scope="module")
def html(page: Path) -> str:
    return (page / "index.html").read_text()


def element(html: str, number: int) -> str:
    return html.split(f'id="cluster-{number}"')[1].split("</article>")[0]


def test_all_that_the_page_links_to_is_there(page: Path, html: str) -> None:
    linked = set(re.findall(r'(?:src|href)="([^"#]+)"', html))
    assert all((page / name).is_file() for name in linked)
    for number in range(1, 4):
        assert {f"clusters/cluster-0{number}.webp", f"figures/cluster-0{number}.png"} <= linked


def test_labels_and_kinds_are_text_and_nothing_runs(html: str) -> None:
    assert "<script" not in html
    assert "<img src=x" not in html
    assert "<b>lamp" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert " style=" not in html  # the page's policy forbids it


def test_a_row_is_one_element_across_all_labels_its_source_framed(html: str) -> None:
    for number, members in enumerate(MEMBERS, start=1):
        rows = re.findall(r"<tr>\s*<th scope=\"row\">from (.*?)</tr>", element(html, number), re.S)
        assert len(rows) == min(members, ROWS)
        for row in rows:
            cells = re.findall(r"<td([^>]*)><svg", row)
            assert len(cells) == len(LABELS)
            (own,) = (place for place, marks in enumerate(cells) if marks)
            assert cells[own] == ' class="own"'
            names = re.findall(r'aria-label="([^"]+)"', row)
            assert names[own].startswith("The source image under")
            assert sum(name.startswith("Translated under") for name in names) == len(LABELS) - 1
            source = re.search(r"<bdi>(.*?)</bdi>", row)
            assert source
            assert f"The source image under {source[1]}, typicality" in row


def test_scores_stand_with_their_own_label(html: str) -> None:
    row = re.findall(r"<tr>\s*<th scope=\"row\">from (.*?)</tr>", element(html, 1), re.S)[0]
    scores = re.findall(r"under (barn|tower), typicality \+(\d\.\d\d)", row)
    by_name = sorted(LABELS)
    expected = {label: f"{by_name.index(label):.2f}" for label in ("barn", "tower")}
    assert dict(scores) == expected


def test_the_sheet_has_the_mean_patches_and_a_row_for_each_member(page: Path) -> None:
    sheet = Sheet.of(SIZE, 1 + ROWS, len(LABELS))
    with Image.open(page / "clusters" / "cluster-02.webp") as picture:
        assert picture.size == (sheet.width, sheet.height)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    for row in range(1 + ROWS):
        for column in range(len(LABELS)):
            x, y = sheet.corner(row, column)
            middle = pixels[y + 6 : y + 18, x + 6 : x + 18].mean((0, 1))
            np.testing.assert_allclose(middle, square(1, column), atol=8)  # WebP loses some


def test_the_strip_has_each_labels_own_colour(page: Path, html: str) -> None:
    stored = json.loads((page / NUMBERS).read_text())
    strip = element(html, 2).split('class="trend"')[1].split("</tbody>")[0]
    swatches = re.findall(r'fill="(#[0-9a-f]{6})"', strip)
    assert swatches == [f"#{bytes(square(1, column)).hex()}" for column in range(len(LABELS))]
    colours = stored["clusters"][1]["colours"]
    assert [colours[label]["srgb"] for label in LABELS] == swatches
    movement = stored["clusters"][1]["movement"]
    assert f"ΔE {movement['delta_e']:.0f}" in element(html, 2).split("<table>")[0]


def test_the_known_answer_and_its_rule_are_said(html: str) -> None:
    assert "<dd>67 %</dd>" in html
    assert "at least 80 % of its sequences" in html
    assert "100 % on a <bdi>roof</bdi>" in element(html, 1)
    assert "on no known element" in element(html, 3)


def test_without_a_known_answer_nothing_is_said_of_it() -> None:
    html = render_parallel(drawn_parallel(["barn", "tower"], truth=None), "")
    assert "stay the same" not in html
    assert "known element" not in html


def test_colours_of_many_clusters_fold_away() -> None:
    html = render_parallel(drawn_parallel(["barn", "tower"], members=[6] * 11, truth=None), "")
    tables = re.findall(r'class="numbers colours".*?</table>', html, re.S)
    assert [len(re.findall("#cluster-", table)) for table in tables] == [OVERVIEW, 11 - OVERVIEW]
    assert f"The other {11 - OVERVIEW} clusters" in html


def test_small_clusters_fold_away_at_the_end(html: str) -> None:
    open_part, folded = html.split("<details")
    assert 'id="cluster-2"' in open_part
    assert 'id="cluster-3"' in folded
    assert "1 small cluster, fewer than 6" in folded


def test_one_member_is_no_mean() -> None:
    html = render_parallel(drawn_parallel(["barn", "tower"], members=[1], truth=None), "")
    assert "the one</th>" in html
    assert "<details open>" in re.sub(r' class="[^"]*"', "", html)


def test_tables_and_figures_lie_beside_it(page: Path) -> None:
    assert pq.read_table(page / SEQUENCES).schema == JOINT_SCHEMA
    assert pq.read_table(page / TREND).schema == TREND_SCHEMA
    with Image.open(page / "figures" / "overview.png") as overview:
        assert overview.width > len(LABELS) * 96


def test_the_artifact_is_a_table_whose_labels_are_text() -> None:
    text = markdown(numbers(drawn_parallel(["barn", "<b>|`x`|"])), "file:///page.html")
    lines = text.splitlines()
    assert lines[0] == "| cluster | sequences | median co-typicality | colour moves most | kind |"
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:5]] == [6] * 5
    assert not re.search(r"(?<!\\)[<`]", text)
    assert lines[2].startswith("| 1 | 9 | 0.00304 | barn to ")
    assert lines[2].endswith("| roof 100 % |")
    assert "One kind of element in 67 % of the clusters." in text
    plain = markdown(numbers(drawn_parallel(["barn"], truth=None)), "file:///page.html")
    assert "kind" not in plain
    assert "| – |" in plain


def test_links_of_the_page_at_the_root_start_with_its_folder() -> None:
    html = render_parallel(drawn_parallel(["barn", "tower"]), "folder/")
    assert 'href="folder/clusters/cluster-01.webp"' in html
    assert 'href="folder/static/site.css"' in html
    assert 'href="#cluster-1"' in html


def test_an_image_that_has_become_smaller_is_named(tmp_path: Path) -> None:
    drawn = drawn_parallel(["barn", "tower"])
    whole = drawn.look
    object.__setattr__(drawn, "look", lambda *asked: whole(*asked)[:20, :20])
    with pytest.raises(InputError, match=r"image 0{32} is 20×20 px now.*index it again"):
        write_parallel(drawn, tmp_path)


def test_a_figure_frames_and_corners_the_source_alone() -> None:
    grey = np.full((SIZE, SIZE, 3), 128, np.uint8)
    figure = labels_figure(
        ["a", "b"], [FigureRow("x", [grey, grey], own=[1], colours=["#00ff00"] * 2)]
    )
    pixels = np.asarray(figure).astype(int)
    red = (pixels == (214, 20, 26)).all(axis=2)
    half = figure.width - 24 - 96 - 8  # before the frame of the second tile
    assert not red[:, :half].any()
    assert red[:, half:].sum() > 4 * 4 * 96
    assert (pixels == (0, 255, 0)).all(axis=2).sum() > 2 * 90 * 10
