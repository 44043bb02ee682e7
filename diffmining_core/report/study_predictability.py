"""The page of a study of predictability: how well patches of each kind tell their label."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from diffmining_core.evaluation.predictability import Predicted
from diffmining_core.report.charts import strip_plot
from diffmining_core.report.figures import Tile
from diffmining_core.report.study_page import StudyPage, Table

FEATURES, COLOURS = "features", "colours"
"""What the classifier sees of a patch."""

_SEEN = {FEATURES: "the model’s features", COLOURS: "colours"}


@dataclass(frozen=True)
class PredictabilityStudy:
    """All that was measured: by what is seen of a patch, and by the kind of the patches."""

    title: str
    predicted: Mapping[str, Mapping[str, Predicted]]
    patches: int
    labels: Sequence[str]
    tiles: Callable[[str], Mapping[str, Sequence[Tile]]]
    facts: Mapping[str, Any]


def predictability_page(study: PredictabilityStudy) -> StudyPage:
    """The page of a study of predictability."""
    first = next(iter(next(iter(study.predicted.values())).values()))
    rows = [
        (kind, seen, one)
        for seen, of_kinds in study.predicted.items()
        for kind, one in of_kinds.items()
    ]
    return StudyPage(
        title=study.title,
        lead="How well a patch alone tells the label of its image: a linear classifier sees the "
        "patches of some images and names the label of those of others.",
        tables=[
            Table(
                ["patches", "label named", "standard error", "by chance"],
                [
                    [
                        f"{kind}, {_SEEN[seen]}",
                        _percent(one.accuracy),
                        _percent(one.standard_error),
                        _percent(one.chance),
                    ]
                    for kind, seen, one in rows
                ],
                f"Means over labels, of {study.patches:,} patches at most of each label and kind. "
                "The features are the model’s own under the prompt without the label; colours are "
                "those of the patch shrunk to 8 by 8.",
            ),
            Table(
                ["label", *(f"{kind}, {seen}" for kind, seen, _ in rows)],
                [
                    [label, *(_percent(one.by_label[label]) for *_, one in rows)]
                    for label in first.by_label
                ],
                "Of each label’s images, the mean share of their patches whose label is named.",
            ),
        ],
        labels=study.labels,
        tiles=study.tiles,
        numbers={
            seen: {kind: asdict(one) for kind, one in of_kinds.items()}
            for seen, of_kinds in study.predicted.items()
        },
        facts=study.facts,
        dots=strip_plot(
            {
                f"by {_SEEN[seen]}": {
                    kind: list(one.by_label.values()) for kind, one in of_kinds.items()
                }
                for seen, of_kinds in study.predicted.items()
            },
            {f"by {_SEEN[seen]}": first.chance for seen in study.predicted},
        ),
        dots_words="How often the label is named, a dot for each label, the mean as a bar, chance "
        "as a dashed line, on a scale of square roots.",
        pictures_title="Patches of each kind",
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
