"""A figure as SVG: its pictures inside the file, its words as words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from xml.sax.saxutils import escape, quoteattr

from PIL import Image

from diffmining_core.report.escaping import printable
from diffmining_core.report.figures import PAPER
from diffmining_core.report.layouts import Figure, Picture, Text, colour, own_font_file

_OWN, _OTHERS = "figure-letters", "Helvetica, Arial, 'DejaVu Sans', sans-serif"


def svg(figure: Figure) -> bytes:
    """One file that needs no other; labels are escaped, and control characters left out."""
    return "\n".join(_lines(figure)).encode()


def _lines(figure: Figure) -> Iterator[str]:
    width, height = figure.width, figure.height
    title = printable(figure.title)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label={quoteattr(title)}>'
    )
    yield f"<title>{escape(title)}</title>"
    yield f'<rect width="{width}" height="{height}" fill="{colour(PAPER)}"/>'
    yield from map(_picture, figure.pictures)
    if figure.texts:
        yield from _words(figure)
    yield "</svg>\n"


def _words(figure: Figure) -> Iterator[str]:
    """The words, in the font that they were measured with where it has their letters."""
    embedded = base64.b64encode(own_font_file()).decode()
    address = f"data:font/ttf;base64,{embedded}"
    yield f"<style>@font-face {{ font-family: {_OWN}; src: url({address}) }}</style>"
    yield f'<g font-family="{_OWN}, {_OTHERS}">'
    yield from (_text(text) for text in figure.texts if text.words)
    yield "</g>"


def _picture(picture: Picture) -> str:
    data = io.BytesIO()
    Image.fromarray(picture.pixels).save(data, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return (
        f'<image x="{picture.x}" y="{picture.y}" width="{picture.side}" height="{picture.side}" '
        f'href="{address}"/>'
    )


def _text(text: Text) -> str:
    words = printable(text.words)
    font = "" if words.isascii() else f' font-family="{_OTHERS}"'  # as it was measured
    # The width is given, so that words stay in their place whatever font a viewer takes.
    return (
        f'<text x="{text.x}" y="{text.baseline:g}" font-size="{text.size}" '
        f'fill="{colour(text.ink)}"{font} '
        f'textLength="{text.width:g}" lengthAdjust="spacingAndGlyphs">'
        f"{escape(words)}</text>"
    )
