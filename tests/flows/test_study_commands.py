"""The commands that study, as they are typed and as they answer."""

from __future__ import annotations

import pytest

from flows.cli import app, print_study
from flows.parameters import (
    ClusterStudyParameters,
    GeneratedStudyParameters,
    MinedStudyParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    PredictabilityStudyParameters,
    TimestepStudyParameters,
)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["timesteps", "--bins", "5"], TimestepStudyParameters(dataset="d", root="r", bins=5)),
        (["noise", "--seeds", "3"], NoiseStudyParameters(dataset="d", root="r", seeds=3)),
        (
            ["patch-sizes", "--sizes", "16", "--sizes", "24"],
            PatchSizeStudyParameters(dataset="d", root="r", sizes=(16, 24)),
        ),
        (
            ["clusters", "--ks", "4", "--least-members", "5"],
            ClusterStudyParameters(dataset="d", root="r", ks=(4,), least_members=(5,)),
        ),
        (
            ["predictability", "--patches", "50", "--masks", "m"],
            PredictabilityStudyParameters(dataset="d", root="r", patches=50, masks="m"),
        ),
        (
            ["generated", "--guidance", "1", "--guidance", "7.5", "--images", "9"],
            GeneratedStudyParameters(dataset="d", root="r", guidance=(1, 7.5), images=9),
        ),
    ],
)
def test_each_study_is_a_command_with_options_of_its_own(
    words: list[str], expected: MinedStudyParameters
) -> None:
    _, bound, _ = app.parse_args(["study", *words, "--dataset", "d", "--root", "r"])
    (parameters,) = bound.arguments.values()
    assert parameters == expected


def test_the_table_of_a_study_is_printed_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    table = {"columns": ["size", "hit"], "rows": [["9 px", "5 %"], ["100 px", "100 %"]]}
    facts = {"notes": ["The model is an old one."]}
    print_study(
        {"table": table, "facts": facts, "seconds": 2.4, "peak_memory_mb": 9, "page": "p.html"}
    )
    assert capsys.readouterr().out.splitlines() == [
        "",
        "size      hit",
        "9 px      5 %",
        "100 px  100 %",
        "Note: The model is an old one.",
        "2 s, at most 9 MB",
        "Open p.html",
    ]
