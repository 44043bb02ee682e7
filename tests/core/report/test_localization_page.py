"""The page of a localisation, written from drawn maps."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from drawn_localization import drawn_localization
from drawn_site import HOSTILE
from PIL import Image

from diffmining_core.localization.scores import SCORE_SCHEMA
from diffmining_core.report.localization import (
    NUMBERS,
    SCORES,
    markdown,
    numbers,
    render_localization,
    write_localization,
)
from diffmining_core.report.outlines import outlined
from diffmining_core.report.overlays import smoothed

LABELS = ["barn", *HOSTILE[:2]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("localization")
    write_localization(drawn_localization(LABELS), folder)
    return folder


def test_all_that_the_page_links_to_is_there(page: Path) -> None:
    html = (page / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"#]+)"', html)
    assert len(set(linked)) > len(LABELS) * 9
    assert all((page / name).is_file() for name in linked)
    pictures = {path.name for path in (page / "pictures").iterdir()}
    assert len(pictures) == len(LABELS) * 3 * 3  # highest, median, lowest; image, before, after
    assert all(re.fullmatch(r"[a-z0-9-]+\.webp", name) for name in pictures)


def test_labels_and_file_names_are_text(page: Path) -> None:
    html = (page / "index.html").read_text()
    assert "<script>" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_table_has_the_mean_and_deviation_of_each_label_and_all(page: Path) -> None:
    html = (page / "index.html").read_text()
    stored = json.loads((page / NUMBERS).read_text())
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(.*?)</tr>", html)
    assert len(rows) == len(LABELS) + 1
    for row, finding in zip(rows, [*stored["findings"], stored["all"]], strict=True):
        for measure in ("average_precision", "official_auc_pr"):
            for side in ("before", "after"):
                one = finding[measure][side]
                assert f'{one["mean"]:.3f} <span class="small">± {one["std"]:.3f}</span>' in row
        assert f"<td>{finding['chance']['mean']:.3f}</td>" in row
    assert "all</th>" in rows[-1]
    after, before = (stored["all"]["average_precision"][side] for side in ("after", "before"))
    assert after["mean"] > before["mean"]


def test_every_image_is_a_dot(page: Path) -> None:
    html = (page / "index.html").read_text()
    assert html.count("<circle") == len(LABELS) * 5 * 2


def test_scores_of_every_image_are_a_table_beside_it(page: Path) -> None:
    table = pq.read_table(page / SCORES)
    assert table.schema == SCORE_SCHEMA
    assert table.num_rows == len(LABELS) * 5 * 2


def test_a_model_as_given_has_one_column(tmp_path: Path) -> None:
    drawn = drawn_localization(["barn"], sides=("as given",))
    write_localization(drawn, tmp_path)
    html = (tmp_path / "index.html").read_text()
    assert html.count('<th scope="col">as given</th>') == 2  # of each of the two measures
    assert "before" not in re.sub(r"<[^>]+>", "", html.split("<tbody>")[0])
    assert len(list((tmp_path / "pictures").iterdir())) == 3 * 2


def test_links_of_the_page_at_the_root_start_with_its_folder() -> None:
    html = render_localization(drawn_localization(["barn"]), "folder/")
    assert 'src="folder/pictures/barn-highest-0.webp"' in html
    assert 'href="folder/static/site.css"' in html


def test_the_line_is_around_the_mask_and_leaves_what_is_in_it() -> None:
    mask = np.zeros((10, 10), bool)
    mask[4:6, 3:8] = True
    grey = Image.new("RGB", (100, 100), (128, 128, 128))
    drawn = np.asarray(outlined(grey, mask)).astype(int)
    assert (drawn[40:60, 30:80] == 128).all()
    assert (drawn[37:40, 30:80] == 255).all()
    assert (drawn[34:37, 30:80] < 30).all()
    assert (drawn[:34] == 128).all()


def test_smoothing_keeps_what_is_constant_and_spreads_what_is_not() -> None:
    np.testing.assert_allclose(smoothed(np.full((6, 9), 3, np.float32), 2.0), 3, rtol=1e-6)
    point = np.zeros((31, 31), np.float32)
    point[15, 15] = 1
    blurred = smoothed(point, 2.0)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert blurred[15, 17] / blurred[15, 15] == pytest.approx(np.exp(-0.5), abs=1e-5)


def test_the_artifact_is_a_table_whose_labels_are_text() -> None:
    drawn = drawn_localization(["barn", "<b>|`x`|"])
    text = markdown(numbers(drawn), "file:///page.html")
    lines = text.splitlines()
    assert lines[0] == (
        "| label | images | by chance | average precision before | average precision after |"
    )
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:5]] == [6] * 5
    assert not re.search(r"(?<!\\)[<`]", text)
    assert lines[4].startswith("| all | 10 |")
