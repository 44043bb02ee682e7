"""Draw the picture of explanation.md: two errors, their difference, and the patches it picks.

    python docs/draw_typicality.py --root demo

Takes the model that `make demo` finetuned and two of its scenes. Here the equation is worked out as
it is written, one draw after the other and with both errors kept: mining computes the same faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from diffmining_core.images.pixels import load_pixels
from diffmining_core.models.pipelines import Pipeline, load_pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.patches.scoring import patch_scores, pick_patches, upsample_bilinear
from diffmining_core.report.figures import font
from diffmining_core.report.overlays import diverging_colours
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.draws import draw, sampled_latents

SCENES = ("Almara/Almara_00002.png", "Dorrava/Dorrava_00002.png")
DRAWS = 100
T_RANGE = (0.1, 0.7)
SEED = 42
PATCH = 24
PATCHES = 3

PANEL, GAP, CAPTION, MARGIN = 236, 44, 44, 28
INK, MUTED, PAPER = (26, 26, 24), (112, 110, 104), (255, 255, 255)
LOW_TO_HIGH = np.array(
    [[253, 250, 240], [226, 214, 190], [168, 160, 172], [92, 96, 140], [34, 36, 74]], np.float64
)
"""Of an error, from none to the most."""
HEADINGS = (
    ("image", ""),
    ("error without the label", 'prompt: ""'),
    ("error with it", 'prompt: "An image of ..."'),
    ("typicality", "their difference"),
    ("highest patches", ""),
)

Map = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]


class Errors(NamedTuple):
    """Mean squared errors of the predicted noise at each latent position, float64 [h, w]."""

    null: Map
    conditioned: Map

    @property
    def typicality(self) -> Map:
        """By how much knowing the label makes the error smaller."""
        return self.null - self.conditioned


class Panels(NamedTuple):
    """What a row of the picture shows."""

    label: str
    pixels: Pixels
    errors: Errors


def errors(
    pipeline: Pipeline, pixels: Pixels, label: str, prompts: PromptTemplate, draws: int = DRAWS
) -> Errors:
    """The two errors of an image uint8 [H, W, 3], each the mean over the draws and channels."""
    latents = sampled_latents(pipeline, pixels[None], [label], SEED)
    channels, height, width = latents.shape[1:]
    embeds = pipeline.embed_prompts([prompts.null, prompts.of(label)])
    sums = torch.zeros(2, height, width, dtype=torch.float64)
    drawn = draw(SEED, (channels, height, width), draws, T_RANGE)
    for noise, timestep in zip(drawn.noise, drawn.timesteps, strict=True):
        timesteps = timestep.expand(2)
        noisy = pipeline.add_noise(latents, noise[None], timesteps[:1]).expand(2, -1, -1, -1)
        with torch.inference_mode():
            noise_pred = pipeline.predict_noise(noisy, timesteps, embeds)
        sums += ((noise_pred - noise) ** 2).mean(dim=1).double()
    null, conditioned = (sums / draws).numpy()
    return Errors(null, conditioned)


def picture(rows: Sequence[Panels]) -> Image.Image:
    """A row of panels for each image, with headings above and the scales below."""
    most = float(np.quantile([row.errors.null for row in rows], 0.995))
    end = float(np.quantile(np.abs([row.errors.typicality for row in rows]), 0.98))
    top, step = MARGIN + 62, PANEL + CAPTION
    width = 2 * MARGIN + len(HEADINGS) * PANEL + (len(HEADINGS) - 1) * GAP
    height = top + len(rows) * step + 44 + MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, (heading, below) in enumerate(HEADINGS):
        pen.text((left(column), MARGIN), heading, INK, font(heading, 22))
        pen.text((left(column), MARGIN + 30), below, MUTED, font(below, 18))
    y = top
    for row in rows:
        pen.text((left(0), y + PANEL + 8), row.label, MUTED, font(row.label, 18))
        for column, panel in enumerate(panels(row, most, end)):
            sheet.paste(panel, (left(column), y))
        for column, sign in ((1, "−"), (2, "="), (3, "→")):
            middle = (left(column + 1) - GAP // 2, y + PANEL // 2)
            pen.text(middle, sign, INK, font(sign, 30), anchor="mm")
        y += step
    scale(sheet, left(1), y, 2 * PANEL + GAP, error_colours(np.linspace(0, 1, 512)))
    ends(pen, left(1), y, 2 * PANEL + GAP, ("0", "squared error of the noise", f"{most:.2f}"))
    scale(sheet, left(3), y, PANEL, shaded(np.linspace(-1, 1, 512), np.full(512, 230.0)))
    ends(pen, left(3), y, PANEL, (f"-{end:.3f}", "0", f"+{end:.3f}"))
    return sheet


def left(column: int) -> int:
    """Where a column begins, in pixels."""
    return MARGIN + column * (PANEL + GAP)


def panels(row: Panels, most: float, end: float) -> list[Image.Image]:
    """The five panels of an image; the ends of the two scales are those of all rows."""
    hw = row.pixels.shape[:2]
    grey = np.asarray(Image.fromarray(row.pixels).convert("L"), np.float64) * 0.45 + 140
    typicality = upsample_bilinear(row.errors.typicality, (PANEL, PANEL)) / end
    return [
        enlarged(row.pixels),
        *(
            Image.fromarray(error_colours(upsample_bilinear(error, (PANEL, PANEL)) / most))
            for error in (row.errors.null, row.errors.conditioned)
        ),
        Image.fromarray(shaded(typicality, np.asarray(enlarged(grey.astype(np.uint8)), float))),
        chosen(row.pixels, patch_scores(row.errors.typicality, (hw[0], hw[1]), PATCH)),
    ]


def chosen(pixels: Pixels, scores: npt.NDArray[np.float32]) -> Image.Image:
    """The image, pale but for its highest patches."""
    image = enlarged(pixels)
    pale = Image.blend(image, Image.new("RGB", image.size, PAPER), 0.72)
    pen = ImageDraw.Draw(pale)
    factor = PANEL / len(pixels)
    for y, x in pick_patches(scores, PATCH, PATCHES):
        x0, y0, x1, y1 = (round(side * factor) for side in (x, y, x + PATCH, y + PATCH))
        pale.paste(image.crop((x0, y0, x1, y1)), (x0, y0))
        pen.rectangle((x0 - 1, y0 - 1, x1, y1), outline=(196, 22, 42), width=2)
    return pale


def enlarged(pixels: Pixels) -> Image.Image:
    """An image at the size of a panel."""
    return Image.fromarray(pixels).resize((PANEL, PANEL), Image.Resampling.LANCZOS)


def error_colours(values: Map) -> Pixels:
    """RGB uint8 [..., 3] of errors in [0, 1]."""
    stops = np.linspace(0, 1, len(LOW_TO_HIGH))
    channels = [np.interp(values, stops, LOW_TO_HIGH[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def shaded(values: Map, grey: Map) -> Pixels:
    """RGB of values in [-1, 1] laid over a grey picture of 0 to 255, as the page does it."""
    rgba = diverging_colours(values).astype(np.float64)
    opacity = rgba[..., 3:] / 255
    return np.rint(rgba[..., :3] * opacity + grey[..., None] * (1 - opacity)).astype(np.uint8)


def scale(sheet: Image.Image, x: int, y: int, width: int, colours: Pixels) -> None:
    """A colour bar."""
    bar = Image.fromarray(colours[None]).resize((width, 12), Image.Resampling.BILINEAR)
    sheet.paste(bar, (x, y))


def ends(pen: ImageDraw.ImageDraw, x: int, y: int, width: int, words: Sequence[str]) -> None:
    """What the ends and the middle of a colour bar mean."""
    places = ((x, "lt"), (x + width // 2, "mt"), (x + width, "rt"))
    for (at, anchor), text in zip(places, words, strict=True):
        pen.text((at, y + 20), text, MUTED, font(text, 18), anchor=anchor)


def main() -> None:
    """Read the demo's model and scenes, and write the picture beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="where `make demo` left its results")
    parser.add_argument("--to", default=str(Path(__file__).with_name("typicality.webp")))
    arguments = parser.parse_args()
    root = open_root(arguments.root)
    finetuned = read_manifests(root, "finetune")[-1]
    pipeline = load_pipeline(str(Path(root.url) / finetuned.attempt / "model"))
    prompts = PromptTemplate.from_options(finetuned.parameters)
    rows = []
    for scene in SCENES:
        file = Path(root.url) / "street_scenes" / scene
        pixels = load_pixels(str(file), int(str(finetuned.parameters["size"])))
        label = file.parent.name
        rows.append(Panels(label, pixels, errors(pipeline, pixels, label, prompts)))
    picture(rows).save(arguments.to, quality=92, method=6)


if __name__ == "__main__":
    main()
