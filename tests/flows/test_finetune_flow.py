from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diffmining_core.errors import InputError
from diffmining_core.finetuning.estimate import finetune_forwards
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.models.files import model_digest
from diffmining_core.store.ledger import finished
from diffmining_core.store.roots import open_root
from flows.answers import told_table
from flows.finetune import dry_run, finetune
from flows.parameters import FinetuneParameters, MineParameters


@pytest.fixture
def small(parameters: Callable[..., MineParameters], tmp_path: Path) -> FinetuneParameters:
    given = parameters(tmp_path / "root").model_dump(exclude_unset=True)
    fields = FinetuneParameters.model_fields
    return FinetuneParameters(**{name: value for name, value in given.items() if name in fields})


@pytest.mark.usefixtures("prefect_api")
def test_the_flow_leaves_a_model_where_it_says(small: FinetuneParameters) -> None:
    looks = {"held_out": 1, "evaluate_every": 4, "preview_every": 4, "previews_per_label": 1}
    small = small.model_copy(update=looks)
    options = FinetuneOptions.from_options(small.finetune_options(64))
    expected = finetune_forwards(options, FinetuneRunning(**small.finetune_running()), 16, 4)
    summary = finetune(small)
    counts = finished(open_root(small.root), "finetune", summary["key"]).counts
    assert counts["unet_forwards"] == expected == 6 * 2 + 3 * 2 * 10 + 4 * 2 * 20
    assert len(model_digest(Path(summary["model"]))) == 64
    assert (summary["images"], summary["labels"], summary["computed"]) == (16, 4, True)
    again = finetune(small)
    assert again["model"] == summary["model"] and not again["computed"]


def test_a_dry_run_says_what_it_would_cost_and_trains_nothing(small: FinetuneParameters) -> None:
    table = told_table(dry_run(small, cost_per_hour=2.5))
    assert re.search(r"images +16\n", table)
    assert re.search(r"steps +6 of 2 images at 64 px", table)
    assert re.search(r"epochs +0\.75", table)
    assert re.search(r"memory of each device +about \d+ MB \(estimated\)", table)
    assert re.search(r"time +about \d+ s \(measured in two steps on this cpu\)", table)
    assert re.search(r"forwards +12\n", table)
    assert re.search(r"disk +about \d+ MB at the root\n", table)
    assert re.search(r"cost +about \d+\.\d\d, at 2\.5 an hour", table)
    assert not (Path(small.root) / "finetune").exists()


def test_no_steps_are_refused(small: FinetuneParameters) -> None:
    with pytest.raises(InputError, match="finetune_steps should be 1 or more"):
        dry_run(small.model_copy(update={"finetune_steps": 0}))
