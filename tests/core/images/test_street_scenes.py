from __future__ import annotations

import hashlib
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from diffmining_core.errors import InputError
from diffmining_core.images.street_scenes import (
    COUNTRIES,
    ELEMENTS,
    TRUTH_SCHEMA,
    Box,
    Scene,
    caption,
    draw_scene,
    write_dataset,
)
from diffmining_core.images.street_scenes.catalogue import VARIANTS, drawn_variant, variant_shares

# Hue range on PIL's circle of 256 that each typical element shows, and the least share of its box
# with that hue, clearly saturated. The globes are white; their arms carry the hue.
HUES = {
    "terracotta roof": (4, 22, 0.5),
    "blue mansard roof": (145, 170, 0.4),
    "green copper roof": (95, 125, 0.4),
    "golden thatch roof": (18, 36, 0.45),
    "white parapet with cobalt tiles": (150, 172, 0.1),
    "turquoise shutters": (115, 140, 0.25),
    "red arched windows": (222, 255, 0.2),
    "yellow windows with flowers": (26, 42, 0.2),
    "red striped awning": (240, 263, 0.3),
    "violet awning": (175, 212, 0.5),
    "orange sun sign": (12, 30, 0.35),
    "red pillar box": (240, 263, 0.35),
    "yellow post box": (24, 42, 0.35),
    "blue mailbox": (145, 168, 0.35),
    "twin amber lantern": (12, 36, 0.15),
    "lamp with three globes": (105, 135, 0.04),
    "crimson lantern": (235, 262, 0.4),
    "green car plate": (90, 118, 0.3),
    "yellow car plate": (24, 42, 0.25),
    "blue car plate": (142, 165, 0.3),
}


@pytest.fixture(scope="module")
def scenes() -> dict[str, list[Scene]]:
    return {
        country: [draw_scene(np.random.default_rng([7, i, n]), country) for n in range(24)]
        for i, country in enumerate(COUNTRIES)
    }


def file_digests(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def apart(a: Box, b: Box) -> bool:
    return a.y1 <= b.y0 or b.y1 <= a.y0 or a.x1 <= b.x0 or b.x1 <= a.x0


def test_every_country_has_a_roof_and_three_other_typical_elements() -> None:
    assert len({country[0] for country in COUNTRIES}) == len(COUNTRIES)
    for country in COUNTRIES:
        typical = [element for element, variants in ELEMENTS.items() if country in variants]
        assert "roof" in typical
        assert len(typical) == 4
    for variants in VARIANTS.values():
        assert sum(v.typical_of is None for v in variants) >= 2


def test_the_same_generator_draws_the_same_scene() -> None:
    first = draw_scene(np.random.default_rng(1), "Borvik")
    second = draw_scene(np.random.default_rng(1), "Borvik")
    assert first.image.tobytes() == second.image.tobytes()
    assert first.boxes == second.boxes
    assert first.image.mode == "RGB"
    assert first.image.size == (128, 128)
    assert draw_scene(np.random.default_rng(2), "Borvik").boxes != first.boxes


def test_boxes_lie_within_the_picture_and_apart(scenes: dict[str, list[Scene]]) -> None:
    for scene in (s for of_country in scenes.values() for s in of_country):
        assert {box.element for box in scene.boxes} == set(ELEMENTS)
        for box in scene.boxes:
            assert 0 <= box.y0 < box.y1 <= 128
            assert 0 <= box.x0 < box.x1 <= 128
            assert box.y1 - box.y0 >= 8
            assert box.x1 - box.x0 >= 11
        assert all(apart(a, b) for a, b in combinations(scene.boxes, 2))


def test_a_smaller_picture_has_the_same_scene_scaled() -> None:
    whole = draw_scene(np.random.default_rng(4), "Cendria")
    half = draw_scene(np.random.default_rng(4), "Cendria", size=64)
    assert half.image.size == (64, 64)
    for large, small in zip(whole.boxes, half.boxes, strict=True):
        assert (large.variant, large.typical_of) == (small.variant, small.typical_of)
        corners = zip((large.y0, large.x1), (small.y0, small.x1), strict=True)
        assert all(abs(edge / 2 - scaled) <= 1 for edge, scaled in corners)


def test_typical_elements_cover_seven_to_ten_percent(scenes: dict[str, list[Scene]]) -> None:
    shares = []
    for country, of_country in scenes.items():
        for scene in of_country:
            mask = np.zeros((128, 128), dtype=bool)
            for box in scene.boxes:
                if box.typical_of == country:
                    mask[box.y0 : box.y1, box.x0 : box.x1] = True
            shares.append(mask.mean())
    assert 0.07 < np.mean(shares) < 0.10


def test_planting_frequencies() -> None:
    draws = 1500
    rng = np.random.default_rng(11)
    for country in COUNTRIES:
        for element, typical in ELEMENTS.items():
            seen = Counter(drawn_variant(rng, element, country).typical_of for _ in range(draws))
            rest = set(typical) - {country}
            if country in typical:
                assert seen[country] / draws == pytest.approx(0.82, abs=0.04)
                expected = 0.12 / len(rest)
            else:
                expected = 0.06
            for other in rest:
                assert seen[other] / draws == pytest.approx(expected, abs=0.03)
            assert seen[None] / draws > 0.03


def test_scenes_show_what_was_planted(scenes: dict[str, list[Scene]]) -> None:
    shown = sum(
        country in {box.typical_of for box in scene.boxes if box.element == element}
        for country, of_country in scenes.items()
        for scene in of_country
        for element in ELEMENTS
    )
    planted = 4 * sum(len(of_country) for of_country in scenes.values())
    assert shown / planted == pytest.approx(0.82, abs=0.06)


def test_without_a_country_every_variant_is_as_likely() -> None:
    for element, variants in VARIANTS.items():
        assert variant_shares(element, None) == [1 / len(variants)] * len(variants)
        for country in COUNTRIES:
            assert sum(variant_shares(element, country)) == pytest.approx(1)
    scene = draw_scene(np.random.default_rng(8), None)
    assert {box.element for box in scene.boxes} == set(ELEMENTS)


def test_each_typical_box_shows_its_colour(scenes: dict[str, list[Scene]]) -> None:
    met: Counter[str] = Counter()
    for scene in (s for of_country in scenes.values() for s in of_country):
        hsv = np.asarray(scene.image.convert("HSV")).astype(np.int32)
        for box in scene.boxes:
            if box.typical_of is None:
                continue
            low, high, least = HUES[box.variant]
            hue, saturation, _ = np.moveaxis(hsv[box.y0 : box.y1, box.x0 : box.x1], -1, 0)
            of_hue = ((hue - low) % 256 <= high - low) & (saturation > 80)
            assert of_hue.mean() > least, (box, of_hue.mean())
            met[box.variant] += 1
    assert met.keys() == HUES.keys()


def test_captions_name_elements_and_no_country(scenes: dict[str, list[Scene]]) -> None:
    rng = np.random.default_rng(3)
    captions = set()
    for scene in (s for of_country in scenes.values() for s in of_country):
        sentence = caption(scene, rng)
        captions.add(sentence)
        assert sentence.startswith("A street with ")
        assert sentence.endswith(".")
        assert any(box.variant in sentence for box in scene.boxes)
        assert not any(country.lower() in sentence.lower() for country in COUNTRIES)
    assert len(captions) > 100


def test_dataset_on_disk_and_its_truth(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    write_dataset(tmp_path, 2, seed=5, on_progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (10, 10)
    table = pq.read_table(tmp_path / "truth.parquet")
    assert table.schema.remove_metadata() == TRUTH_SCHEMA
    files = {f"{c}/{c}_{n:05d}.png" for c in COUNTRIES for n in (1, 2)}
    assert set(table["file"].to_pylist()) == files
    assert set(file_digests(tmp_path)) == files | {"truth.parquet"}
    for row in table.to_pylist():
        assert row["file"].startswith(row["label"] + "/")
        assert row["typical_of"] in (None, *COUNTRIES)
    with Image.open(tmp_path / "Almara/Almara_00001.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (128, 128))


def test_a_grown_dataset_keeps_its_pictures(tmp_path: Path) -> None:
    grown, fresh = tmp_path / "grown", tmp_path / "fresh"
    write_dataset(grown, 1, seed=5)
    before = file_digests(grown)
    write_dataset(grown, 3, seed=5)
    write_dataset(fresh, 3, seed=5)
    assert file_digests(grown) == file_digests(fresh)
    assert all(file_digests(grown)[f] == d for f, d in before.items() if f.endswith(".png"))


def test_writing_again_draws_only_what_is_missing(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, seed=5)
    whole = file_digests(tmp_path)
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.png")}
    lost = tmp_path / "Elsund/Elsund_00001.png"
    lost.unlink()
    write_dataset(tmp_path, 1, seed=5)
    assert file_digests(tmp_path) == whole
    assert all(p.stat().st_mtime_ns == t for p, t in times.items() if p != lost)


def test_a_run_stopped_before_the_truth_is_completed(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, seed=5)
    whole = file_digests(tmp_path)
    (tmp_path / "truth.parquet").unlink()
    write_dataset(tmp_path, 1, seed=5)
    assert file_digests(tmp_path) == whole


def test_another_seed_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, 1, seed=5)
    with pytest.raises(InputError, match="seed 5, and seed 6 was asked for"):
        write_dataset(tmp_path, 1, seed=6)
