"""Scores of many images taken together by label."""

from __future__ import annotations

import pyarrow as pa
import pytest

from diffmining_core.localization.findings import all_findings, examples, findings, sides
from diffmining_core.localization.scores import SCORE_SCHEMA


def scores(
    by_label: dict[str, list[float]], names: tuple[str, ...] = ("before", "after")
) -> pa.Table:
    """Images of a label with these scores on the last side, half of them on the side before."""
    rows = [
        {
            "image_id": f"{label}-{number}",
            "uri": f"/{label}/{number}.png",
            "label": label,
            "side": side,
            "chance": 0.1 * (1 + number),
            "average_precision": value if side == names[-1] else value / 2,
            "official_auc_pr": value / 10,
        }
        for label, values in by_label.items()
        for number, value in enumerate(values)
        for side in names
    ]
    return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)


def test_means_and_deviations_are_over_the_images_of_a_label() -> None:
    table = scores({"Mass": [0.2, 0.4], "Effusion": [0.5]})
    effusion, mass = findings(table)
    assert (effusion.label, effusion.images) == ("Effusion", 1)
    assert (mass.label, mass.images) == ("Mass", 2)
    assert mass.average_precision["after"].mean == pytest.approx(0.3)
    assert mass.average_precision["after"].std == pytest.approx(0.1)  # of the population
    assert mass.average_precision["before"].mean == pytest.approx(0.15)
    assert mass.official_auc_pr["after"].mean == pytest.approx(0.03)
    assert mass.chance.mean == pytest.approx(0.15)
    assert effusion.average_precision["after"].std == 0


def test_all_together_weighs_images_not_labels() -> None:
    """So does the paper: 9.6 % is the mean over its findings by the number of their boxes."""
    together = all_findings(scores({"Mass": [0.2, 0.4], "Effusion": [0.6]}))
    assert together.label is None
    assert together.images == 3
    assert together.average_precision["after"].mean == pytest.approx(0.4)


def test_sides_keep_their_order() -> None:
    assert sides(scores({"Mass": [0.2, 0.3]})) == ["before", "after"]
    assert sides(scores({"Mass": [0.2]}, names=("as given",))) == ["as given"]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.3], {"highest": 0}),
        ([0.1, 0.9], {"highest": 1, "lowest": 0}),
        ([0.1, 0.9, 0.4, 0.2, 0.6], {"highest": 1, "median": 2, "lowest": 0}),
        ([0.5, 0.5, 0.5], {"highest": 0, "median": 1, "lowest": 2}),  # by id
    ],
)
def test_examples_are_the_highest_median_and_lowest(
    values: list[float], shown: dict[str, int]
) -> None:
    rows = examples(scores({"Mass": values}))
    assert {name: row["image_id"] for name, row in rows.items()} == {
        name: f"Mass-{number}" for name, number in shown.items()
    }
