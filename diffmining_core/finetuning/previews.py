"""Grids of generated images, one row per label: what the model thinks a label looks like."""

from __future__ import annotations

import io
import json
import unicodedata
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from diffmining_core.models.generation import Predict, latent_shape, sampled
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.seeds import seeded

LABELS_SHOWN = 8
DDIM_STEPS = 20
GUIDANCE = 5.0
SHOWN_SIDE = 256
"""Pixels of a picture in the grid; larger ones are shrunk."""

_GAP = 4


def preview(
    pipeline: Pipeline,
    predict: Predict,
    prompts: PromptTemplate,
    labels: Sequence[str],
    side: int,
    columns: int,
    seed: int,
) -> bytes:
    """A PNG with a row of generated images for each of the first labels.

    A column's noise is the same for every label and at every step, so that what differs is what
    the model knows. No random state but its own is touched.
    """
    rows = []
    for label in labels[:LABELS_SHOWN]:
        latents = generated_latents(pipeline, predict, prompts, label, side, columns, seed)
        rows.append(decoded(pipeline, latents))
    return grid(rows, [prompts.of(label) for label in labels[:LABELS_SHOWN]])


@torch.no_grad()
def generated_latents(
    pipeline: Pipeline,
    predict: Predict,
    prompts: PromptTemplate,
    label: str,
    side: int,
    columns: int,
    seed: int,
) -> torch.Tensor:
    """Latents [columns, channels, h, w] sampled by DDIM with guidance away from the null prompt."""
    shape = latent_shape(pipeline, side)
    noise = [torch.randn(shape, generator=seeded(seed, "preview", i)) for i in range(columns)]
    embeds = pipeline.embed_prompts([prompts.null, prompts.of(label)])
    return sampled(pipeline, predict, torch.stack(noise), embeds, GUIDANCE, DDIM_STEPS)


def decoded(pipeline: Pipeline, latents: torch.Tensor) -> list[Image.Image]:
    """The images of latents, no larger than they are shown."""
    images = [Image.fromarray(pixels) for pixels in pipeline.decode(latents)]
    for image in images:
        image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return images


def grid(rows: Sequence[Sequence[Image.Image]], captions: Sequence[str]) -> bytes:
    """A PNG of the rows, each below its caption; the captions are in the file's text too."""
    width, height = rows[0][0].size
    font = ImageFont.load_default(size=max(13, height // 14))
    line = int(font.size * 1.6)  # type: ignore[union-attr] # Pillow has FreeType wherever it has wheels
    columns = len(rows[0])
    full_width = columns * (width + _GAP) + _GAP
    sheet = Image.new("RGB", (full_width, len(rows) * (line + height + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        top = number * (line + height + _GAP) + _GAP
        draw.text((_GAP, top), _fitting(caption, draw, font, full_width), "black", font)
        for column, image in enumerate(row):
            sheet.paste(image, (_GAP + column * (width + _GAP), top + line))
    text = PngInfo()
    text.add_text("rows", json.dumps(list(captions)))
    data = io.BytesIO()
    sheet.save(data, "png", pnginfo=text)
    return data.getvalue()


def _fitting(
    caption: str,
    draw: ImageDraw.ImageDraw,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
) -> str:
    """The caption, cut off with dots where it would leave the picture.

    The one font that is the same on every machine has no letters beyond ASCII: accents go, and
    what is left is a question mark.
    """
    plain = unicodedata.normalize("NFKD", " ".join(caption.split()))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    caption = plain.encode("ascii", "replace").decode()
    if draw.textlength(caption, font) <= width - 2 * _GAP:
        return caption
    while caption and draw.textlength(f"{caption}...", font) > width - 2 * _GAP:
        caption = caption[:-1]
    return f"{caption}..."
