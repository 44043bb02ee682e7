"""The page of a study of generated images: mined like the real ones, by guidance scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffmining_core.evaluation.predictability import Predicted
from diffmining_core.report.figures import Tile
from diffmining_core.report.study_page import Chart, StudyPage, Table

REAL = "real"


@dataclass(frozen=True)
class GeneratedNumbers:
    """What mining one dataset came to: the real images, or those generated at one scale.

    guidance: None of the real ones. typicality: mean over all places; highest: mean of the highest
    patches; told: how well the highest patches tell their label.
    """

    name: str
    guidance: float | None
    images: int
    typicality: float
    highest: float
    told: Predicted


@dataclass(frozen=True)
class GeneratedStudy:
    """All that was measured, the real images first; tiles as in `StudyPage`."""

    title: str
    numbers: Sequence[GeneratedNumbers]
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    facts: Mapping[str, Any]


def generated_page(study: GeneratedStudy) -> StudyPage:
    """The page of a study of generated images."""
    real, *generated = study.numbers
    by, at = "guidance scale", [one.guidance or 0.0 for one in generated]
    return StudyPage(
        title=study.title,
        lead="Images that the finetuned model makes of each label, at several scales of "
        "classifier-free guidance, mined like the real ones: what the model takes for typical, "
        "and how much guidance exaggerates it.",
        tables=[
            Table(
                ["images", "number", "typicality of the highest", "of all places",
                 "label told", "standard error"],
                [_row(one) for one in study.numbers],
                "The label is told by a linear classifier from the features of the highest "
                "patches, of images that it has not seen; by chance it would be "
                f"{100 * real.told.chance:.0f} %. Of more images it learns more.",
            )
        ],
        labels=study.labels,
        tiles=study.tiles,
        numbers={"mined": [asdict(one) for one in study.numbers]},
        facts=study.facts,
        charts=[
            _chart("typicality", "Typicality of the highest patches", "mean", by, at,
                   [one.highest for one in generated], real.highest),
            _chart("told", "Label told", "from the features of the highest patches", by, at,
                   [one.told.accuracy for one in generated], real.told.accuracy),
        ],
        pictures_title="The highest patches, and whole images, by guidance scale",
    )  # fmt: skip


def _chart(
    name: str,
    title: str,
    words: str,
    by: str,
    at: Sequence[float],
    values: Sequence[float],
    real: float,
) -> Chart:
    lines = {"generated": list(values), REAL: [real] * len(at)}
    return Chart(name, title, words, by, at, lines)


def _row(one: GeneratedNumbers) -> list[str]:
    return [
        one.name,
        f"{one.images:,}",
        f"{one.highest:.4f}",
        f"{one.typicality:.4f}",
        f"{100 * one.told.accuracy:.1f} %",
        f"{100 * one.told.standard_error:.1f} %",
    ]
