"""Figures are one description and three files of it, which show the same."""

from __future__ import annotations

import base64
import io
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pypdfium2
import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.report import layouts
from diffmining_core.report.figures import Tile
from diffmining_core.report.layouts import FORMATS, TILE, Figure

SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '</svg><script>alert(1)</script> "&" \x00\x1b\ufffe'


def tiles(count: int, side: int = 24, seed: int = 0) -> list[Tile]:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return [np.asarray(Image.fromarray(one).resize((side, side))) for one in coarse]


def strips(*headings: str) -> dict[str, dict[str, list[Tile]]]:
    return {
        heading: {name: tiles(5, seed=place) for place, name in enumerate(("Highest", "Lowest"))}
        for heading in headings
    }


FIGURES = {
    "clusters": layouts.clusters_figure([tiles(7), tiles(4, 130), tiles(2)], "barn"),
    "strips": layouts.strips_figure(strips("Before finetuning", "After finetuning"), "barn"),
    "overview": layouts.overview_figure(
        "Typical of « villes »", [("barn", [tiles(5)]), ("Île d’été", [tiles(3), tiles(1)])]
    ),
    "hostile": layouts.overview_figure(HOSTILE, [(HOSTILE, [tiles(2)]), ("東京 " * 40, [])]),
}


@pytest.fixture(params=list(FIGURES))
def figure(request: pytest.FixtureRequest) -> Figure:
    return FIGURES[request.param]


def test_clusters_are_six_by_six_at_the_papers_gaps() -> None:
    figure = layouts.clusters_figure([tiles(9)] * 8)
    assert {(one.x, one.y) for one in figure.pictures} == {
        (column * (TILE + 2), row * (TILE + 4)) for row in range(6) for column in range(6)
    }
    assert (figure.width, figure.height) == (6 * TILE + 5 * 2, 6 * TILE + 5 * 4)


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_figure_has_the_same_bytes(figure: Figure, form: str, tmp_path: Path) -> None:
    figure.save(tmp_path / f"figure.{form}")
    assert (tmp_path / f"figure.{form}").read_bytes() == figure.encoded(form)


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="png, svg, pdf, not as 'webp'"):
        FIGURES["clusters"].save(tmp_path / "figure.webp")


def test_svg_has_the_pictures_and_the_words(figure: Figure) -> None:
    root = ET.fromstring(figure.encoded("svg"))
    assert (root.get("width"), root.get("height")) == (str(figure.width), str(figure.height))
    pictures = root.findall(f"{SVG}image")
    assert len(pictures) == len(figure.pictures)
    for element, picture in zip(pictures, figure.pictures, strict=True):
        kind, _, data = str(element.get("href")).partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            np.testing.assert_array_equal(np.asarray(image), picture.pixels)
    words = [element.text for element in root.iter(f"{SVG}text")]
    assert words == [text.words for text in figure.texts if text.words]
    assert not list(root.iter(f"{SVG}script"))


def test_pdf_shows_what_png_shows(figure: Figure) -> None:
    document = pypdfium2.PdfDocument(figure.encoded("pdf"))
    (page,) = document
    words = page.get_textpage().get_text_bounded()
    for text in figure.texts:
        if text.words.isascii():
            assert text.words.rstrip(".") in " ".join(words.split())
    shown = page.render(scale=1 / 0.75).to_pil().convert("RGB")
    expected = figure.image()
    assert shown.size == expected.size
    difference = np.abs(np.asarray(shown, np.int16) - np.asarray(expected, np.int16))
    assert difference.mean() < 4  # letters are drawn in another way, pictures from more pixels
    document.close()


def test_small_patches_are_smoothed_and_large_ones_keep_their_pixels() -> None:
    sides = [len(picture.pixels) for picture in FIGURES["clusters"].pictures]
    assert sides == [TILE] * 6 + [130] * 4 + [TILE] * 2
