from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from diffmining_core.store.units import Unit, canonical_json


def unit(**changes: Any) -> Unit:
    values: dict[str, Any] = {
        "stage": "typicality",
        "algo": "1",
        "inputs": ("shard", "model"),
        "parameters": {"draws": 64, "t_range": [0.1, 0.7], "prompt": "Ein Bild aus {label} – ü"},
    }
    return Unit(**{**values, **changes})


def test_keys_are_the_same_on_every_machine_and_in_every_version() -> None:
    assert unit().key == "8e3a7a9a50de82237e026ea6eda782f8"


def test_only_what_the_parameters_say_enters_the_key_not_how_they_are_held() -> None:
    shuffled = {"prompt": "Ein Bild aus {label} – ü", "t_range": (0.1, 0.7), "draws": 64}
    assert unit(parameters=shuffled).key == unit().key


@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "patches"},
        {"algo": "2"},
        {"inputs": ("model", "shard")},
        {"inputs": ("shardmodel",)},
        {"parameters": {"draws": 64}},
        {
            "parameters": {
                "draws": 64.0,
                "t_range": [0.1, 0.7],
                "prompt": "Ein Bild aus {label} – ü",
            }
        },
    ],
)
def test_each_part_of_a_unit_changes_its_key(changes: dict[str, Any]) -> None:
    assert unit(**changes).key != unit().key


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {1: "a"}, [{"a": {None: 1}}], np.float32(1), {1, 2}, b"bytes"]
)
def test_what_json_cannot_hold_exactly_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)
    with pytest.raises((TypeError, ValueError)):
        _ = unit(parameters={"value": value}).key


@pytest.mark.parametrize("stage", ["", "../typicality", "a/b", "Typicality", "a b"])
def test_a_stage_names_a_folder(stage: str) -> None:
    with pytest.raises(ValueError, match="lower-case word"):
        unit(stage=stage)
