"""A figure as a PDF of one page: pictures at full resolution, words as words, fonts embedded."""

from __future__ import annotations

import io

from PIL import Image, ImageFont
from reportlab.lib.utils import ImageReader
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas

from diffmining_core.report import figures
from diffmining_core.report.escaping import printable
from diffmining_core.report.layouts import Figure, Text, own_font_file

POINTS = 0.75
"""Points of a pixel: 96 px are an inch."""


def pdf(figure: Figure) -> bytes:
    """The page; the same figure has the same bytes, as it bears no time."""
    data = io.BytesIO()
    size = figure.width * POINTS, figure.height * POINTS
    canvas = Canvas(data, pagesize=size, invariant=1, pageCompression=1)
    canvas.setTitle(printable(figure.title))
    canvas.setCreator("diffmining")
    canvas.setAuthor("")
    canvas.setSubject("")
    canvas.scale(POINTS, POINTS)
    for picture in figure.pictures:
        below = figure.height - picture.y - picture.side  # PDF counts from the bottom
        pixels = ImageReader(Image.fromarray(picture.pixels))
        canvas.drawImage(pixels, picture.x, below, picture.side, picture.side)
    for text in figure.texts:
        _write(canvas, text, figure.height)
    canvas.save()
    return data.getvalue()


def _write(canvas: Canvas, text: Text, height: int) -> None:
    words = printable(text.words)
    font = figures.font(words, text.size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow is built with FreeType
    if not words:
        return
    line = canvas.beginText(text.x, height - text.baseline)
    line.setFont(_embedded(font), text.size)
    line.setFillColorRGB(*(part / 255 for part in text.ink))
    line.textOut(words)
    canvas.drawText(line)


def _embedded(font: ImageFont.FreeTypeFont) -> str:
    """The name under which a font that Pillow measures with is embedded in PDFs."""
    name = "-".join(part or "" for part in font.getname())
    if name not in pdfmetrics.getRegisteredFontNames():
        file = font.path if isinstance(font.path, str) else io.BytesIO(own_font_file())
        pdfmetrics.registerFont(TTFont(name, file))
    return name
