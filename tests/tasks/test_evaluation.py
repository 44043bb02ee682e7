from __future__ import annotations

from pathlib import Path

import pytest

from diffmining_core.errors import InputError
from diffmining_core.results.references import Results
from tasks.evaluation import evaluate


def test_a_truth_that_changes_during_the_run_is_not_measured_under_its_old_digest(
    scenes: Path, tmp_path: Path
) -> None:
    nothing = Results(
        dataset=(),
        images=0,
        size=64,
        typicality=(),
        selection="0" * 32,
        clusters=(),
        finetune=None,
        compared=(),
        typicality_before=(),
        selection_before=None,
    )
    truth = str(scenes / "truth.parquet")
    with pytest.raises(InputError, match=r"truth.parquet has changed during the run"):
        evaluate.fn(str(tmp_path / "root"), truth, "0" * 64, nothing, 8)
