from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.models.prompts import PromptTemplate

OPTIONS = FinetuneOptions(steps=100, batch_size=2, learning_rate=1e-3)


def test_learning_rates() -> None:
    assert {OPTIONS.learning_rate_at(step) for step in range(100)} == {1e-3}
    cosine = replace(OPTIONS, schedule="cosine")
    rates = np.array([cosine.learning_rate_at(step) for step in range(100)]) / 1e-3
    half_cosine = (1 + np.cos(np.pi * np.arange(100) / 100)) / 2
    np.testing.assert_allclose(rates[:5], half_cosine[:5] * np.arange(1, 6) / 5)
    np.testing.assert_allclose(rates[5:], half_cosine[5:])
    assert rates[-1] < 1e-3


def test_options_go_through_json_beside_the_prompts() -> None:
    options = replace(OPTIONS, snapshots=(10, 100), crop="none")
    stored = {**options.as_options(), **PromptTemplate("A {label}.", words={"a": "b"}).as_options()}
    assert FinetuneOptions.from_options(stored) == options
    with pytest.raises(TypeError, match="stepps"):
        FinetuneOptions.from_options({**stored, "stepps": 2})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"snapshots": (101,)}, "after steps 1 to 100, but 101 is asked for"),
        ({"snapshots": (0,)}, "but 0 is asked for"),
        ({"ema_decay": 1.0}, "below 1, but is 1.0"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        replace(OPTIONS, **changes)


@pytest.mark.parametrize("field", ["processes", "checkpoint_every", "checkpoints_kept"])
def test_a_run_needs_one_of_each(field: str) -> None:
    with pytest.raises(InputError, match=f"{field} must be at least 1, but is 0"):
        FinetuneRunning(**{field: 0})  # type: ignore[arg-type] # its name is a parameter
