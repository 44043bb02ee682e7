from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from stored import results

from flows.mine import mine
from flows.parameters import (
    ClusterStudyParameters,
    CompareParameters,
    GeneratedStudyParameters,
    LocalizeParameters,
    MineParameters,
    NightlyParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    PredictabilityStudyParameters,
    StudyParameters,
    TimestepStudyParameters,
    TranslateParameters,
    TypicalityParameters,
)
from flows.typicality import how_measured, typicality

MEASURING = (
    TypicalityParameters,
    MineParameters,
    NightlyParameters,
    LocalizeParameters,
    TranslateParameters,
    CompareParameters,
    StudyParameters,
    TimestepStudyParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    ClusterStudyParameters,
    PredictabilityStudyParameters,
    GeneratedStudyParameters,
)

FirstRun = tuple[Path, dict[str, Any], int]


@pytest.mark.usefixtures("prefect_api")
def test_it_measures_what_mining_at_the_same_root_then_takes(
    first_run: FirstRun,
    parameters: Callable[..., MineParameters],
    tmp_path: Path,
    forwards: Counter[str],
) -> None:
    mined = results(first_run[0])
    root = tmp_path / "measured"
    both = parameters(root)
    fields = TypicalityParameters.model_fields
    summary = typicality(TypicalityParameters(**{name: getattr(both, name) for name in fields}))
    assert (summary["images"], summary["set_aside"], len(summary["maps"])) == (16, 0, 3)
    measured = results(root)
    assert {unit.partition("/")[0] for unit in measured} == {
        "index",
        "dataset",
        "finetune",
        "typicality",
    }
    assert all(measured[unit] == mined[unit] for unit in measured)
    assert {f"typicality/{key}" for key in summary["maps"].values()} <= measured.keys()
    assert summary["unet_forwards"] == forwards["images"] > 0
    later = mine(both)
    assert later["computed"]["typicality"] == 1, (
        "only the shard that is compared, before finetuning"
    )
    assert "finetune" not in later["computed"]
    assert results(root) == mined


@pytest.mark.parametrize("kind", MEASURING)
def test_the_spread_of_draws_is_in_every_units_key_and_on_every_page(
    kind: type[TypicalityParameters],
) -> None:
    spreads: list[tuple[Literal["paired", "independent"], str]] = [
        ("paired", "paired: opposite noise, timesteps spread evenly"),
        ("independent", "independent, as in the paper"),
    ]
    for spread, said in spreads:
        parameters = kind(dataset="d", root="r", draws_spread=spread)
        if isinstance(parameters, NightlyParameters):
            parameters = parameters.mining()
        assert parameters.typicality_options(64)["spread"] == spread
        assert how_measured(parameters, 64)["typicality"]["spread of draws"] == said
    assert kind(dataset="d", root="r").draws_spread == "paired"
