"""How large a gallery of very many labels is, and how soon a page of it can be used.

    python -m benchmarks.gallery --photos FOLDER

Pages of a few labels are written as among 365: 30 clusters each, before and after finetuning, every
image another, and the bytes of a label times 365 are the gallery's. A picture is made of four
photos at half of 512 px, so that what the gallery keeps of it, at half that size, is as sharp as a
photo at its own. Where Chromium is, it opens the pages from disk and says when a label's page has
loaded and answers a click.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from diffmining_core.report.environment import STATIC, environment
from diffmining_core.report.label_page import Site, write_label
from diffmining_core.report.likeness import cluster_likeness
from diffmining_core.report.overlays import colour_bar
from diffmining_core.report.page import render_index
from diffmining_core.report.pictures import picture_sizes
from diffmining_core.report.ranking import rank_images
from diffmining_core.report.score_unit import ScoreUnit
from diffmining_core.report.source import KINDS, PatchFeatures, SiteSource, label_slugs

SIDE, CELL, PATCH, CLUSTERS, MEMBERS, DIMENSIONS = 512, 8, 64, 30, 33, 1280


def main() -> None:
    """Write the pages, and print what they take."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--photos", type=Path, required=True, help="any folder of photos")
    options.add_argument("--labels", type=int, default=365)
    options.add_argument("--measured", type=int, default=8, help="labels whose pages are written")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = sorted(path for path in asked.photos.rglob("*") if path.suffix in (".jpg", ".png"))
        labels = [f"label {number:03d}" for number in range(asked.labels)]
        source = drawn(labels, asked.measured, photos, folder)
        began = time.perf_counter()
        pages = write(source, labels[: asked.measured], folder / "site")
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        per_label = bytes_below(folder / "site") / asked.measured
        print(
            f"{asked.labels} labels of {CLUSTERS} clusters: {per_label / 1e6:.2f} MB a label, "
            f"{asked.labels * per_label / 1e6:.0f} MB in all; {seconds / asked.measured:.1f} s to "
            f"write a label; at most {peak:.0f} MB of memory"
        )
        for part in ("images", "overlays", "labels"):
            share = bytes_below(folder / "site" / part) / asked.measured
            print(f"  {part}: {share / 1e6:.2f} MB a label")
        opened(pages, folder / "site" / "index.html")


def drawn(labels: list[str], measured: int, photos: list[Path], folder: Path) -> SiteSource:
    """A mined collection of which the first `measured` labels have pictures."""
    rows = [row for number in range(measured) for row in label_rows(labels[number])]
    rows += [row for label in labels[measured:] for row in label_rows(label)[:1]]
    selection = pa.Table.from_pylist(rows)
    clusters = [
        {**row, "cluster": row["label_rank"] % CLUSTERS, "distance": float(row["label_rank"])}
        for row in rows
        if row["kind"] == "highest"
    ]
    summary = [
        {
            "label": label,
            "cluster": cluster,
            "members": MEMBERS,
            "median_typicality": 3e-3 - 5e-5 * cluster,
            "spread": 1e-3,
        }
        for label in labels
        for cluster in range(CLUSTERS)
    ]
    cells = SIDE // CELL

    def noise(image_id: str, label: str) -> NDArray[np.float32]:
        coarse = generator(image_id).normal(0, 1e-3, (cells // 4, cells // 4)).astype(np.float32)
        return np.kron(coarse, np.ones((4, 4), np.float32))

    ranking = rank_images([selection.filter(pa.compute.field("kind") == "random")], folder / "i")
    return SiteSource(
        title="A gallery of very many labels",
        images=36_500,
        labels=labels,
        selection=selection,
        clusters=pa.Table.from_pylist(clusters),
        cluster_summary=pa.Table.from_pylist(summary),
        set_aside=pa.table({"uri": pa.array([], pa.string()), "reason": pa.array([], pa.string())}),
        load_pixels=lambda uri: collage(photos, uri),
        typicality=noise,
        typicality_before=noise,
        before=selection,
        facts={},
        ranking=ranking,
        features=lambda label: features(clusters, label),
    )


def label_rows(label: str) -> list[dict[str, Any]]:
    """The patches of a label, each of another image."""
    rows = []
    for kind in KINDS:
        for rank in range(CLUSTERS * MEMBERS if kind == "highest" else 60):
            uri = f"{label}/{kind}/{rank}"
            y, x = generator(uri).integers(0, SIDE - PATCH, 2).tolist()
            rows.append(
                {
                    "image_id": hashlib.sha256(uri.encode()).hexdigest()[:32],
                    "label": label,
                    "kind": kind,
                    "rank": 0,
                    "y": y,
                    "x": x,
                    "size": PATCH,
                    "typicality": 3e-3 - 2e-6 * rank,
                    "uri": uri,
                    "label_rank": rank,
                }
            )
    return rows


def generator(name: str) -> np.random.Generator:
    """Numbers that follow from a name."""
    return np.random.default_rng(int(hashlib.sha256(name.encode()).hexdigest()[:16], 16))


def collage(photos: list[Path], uri: str) -> NDArray[np.uint8]:
    """Four photos in one picture, uint8 [512, 512, 3]."""
    half = SIDE // 2
    pixels = np.empty((SIDE, SIDE, 3), np.uint8)
    for place, chosen in enumerate(generator(uri).integers(0, len(photos), 4)):
        with Image.open(photos[chosen]) as photo:
            side = min(photo.size)
            square = photo.convert("RGB").crop((0, 0, side, side)).resize((half, half))
        y, x = divmod(place, 2)
        pixels[y * half : (y + 1) * half, x * half : (x + 1) * half] = np.asarray(square)
    return pixels


def features(clusters: list[dict[str, Any]], label: str) -> PatchFeatures:
    """Features by chance of a label's highest patches."""
    places = [(row["image_id"], row["y"], row["x"]) for row in clusters if row["label"] == label]
    vectors = generator(label).normal(size=(len(places), DIMENSIONS)).astype(np.float32)
    return PatchFeatures({place: row for row, place in enumerate(places)}, vectors)


def write(source: SiteSource, labels: list[str], folder: Path) -> list[Path]:
    """The overview of all labels, and the pages of a few as they are among so many."""
    for part in ("labels", "figures"):
        (folder / part).mkdir(parents=True)
    shutil.copytree(STATIC, folder / "static")
    colour_bar().save(folder / "static" / "colour-bar.webp", "WEBP", lossless=True)
    unit = ScoreUnit.of(source.selection["typicality"])
    means = np.random.default_rng(0).normal(size=(CLUSTERS * len(source.labels), DIMENSIONS))
    alike = cluster_likeness(
        (label, range(CLUSTERS), means[CLUSTERS * at : CLUSTERS * (at + 1)].astype(np.float32))
        for at, label in enumerate(source.labels)
    )
    slugs, sizes = label_slugs(source.labels), picture_sizes(len(source.labels))
    site = Site(source, folder, slugs, unit, sizes, alike)
    for label in labels:
        write_label(site, label)
    (folder / "index.html").write_text(render_index(source, ""), encoding="utf-8")
    compare = environment().get_template("compare.html")
    links = list(slugs.items())
    page = compare.render(root="", title=source.title, labels=links)
    (folder / "compare.html").write_text(page, encoding="utf-8")
    return [folder / "labels" / f"{slugs[label]}.html" for label in labels]


def bytes_below(folder: Path) -> int:
    """What the files of a folder take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def opened(pages: list[Path], overview: Path) -> None:
    """How soon Chromium has each page loaded, and opens the viewer after a click."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("Chromium is missing, so no page was opened")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.goto(overview.as_uri(), wait_until="load")
        print(f"overview: {page.evaluate(LOADED):.0f} ms to load")
        for path in pages[:4]:
            page.goto(path.as_uri(), wait_until="load")
            loaded = page.evaluate(LOADED)
            print(f"label: {loaded:.0f} ms to load, {page.evaluate(CLICKED):.0f} ms from click")
        browser.close()


LOADED = "() => performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"
CLICKED = """() => {
    const began = performance.now();
    document.querySelector(".cluster .patch").click();
    return performance.now() - began;
}"""


if __name__ == "__main__":
    main()
