from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffmining_core.finetuning.events import LiveLog, write_log
from diffmining_core.finetuning.losses import BINS, Evaluation, History
from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.finetuning.previews import grid

OPTIONS = FinetuneOptions(steps=200, batch_size=3, learning_rate=1e-3)


@pytest.fixture
def history() -> History:
    found = History.of(200)
    for step in range(200):
        found.note(step, np.full(3, 1 - step / 400, np.float32), np.array([0, 5, 9]))
    table = np.full((2, BINS), 0.5, np.float32)
    found.evaluations += [
        Evaluation(0, table, table),
        Evaluation(200, np.full_like(table, 0.25), table),
    ]
    return found


def shown(folder: Path) -> Any:
    """The log as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder), {"scalars": 0, "images": 0})
    reader.Reload()
    return reader


def test_tensorboard_shows_the_published_log(tmp_path: Path, history: History) -> None:
    from PIL import Image

    png = grid([[Image.new("RGB", (16, 16))]], ["a"])
    for folder in ("one", "two"):
        write_log(tmp_path / folder, history, OPTIONS, {100: png})
    (one,), (two,) = ((tmp_path / folder).iterdir() for folder in ("one", "two"))
    assert one.name == two.name and one.read_bytes() == two.read_bytes()

    reader = shown(tmp_path / "one")
    losses = reader.Scalars("training/loss")
    assert [event.step for event in losses] == list(range(200))
    assert losses[100].value == pytest.approx(0.75)
    assert reader.Scalars("training/learning rate")[0].value == pytest.approx(1e-3)
    assert [(e.step, e.value) for e in reader.Scalars("held out/loss")] == [(0, 0.5), (200, 0.25)]
    assert reader.Scalars("held out by timestep/900-999")[1].value == 0.25
    assert len(reader.Scalars("training by timestep/500-599")) == 50
    assert "training by timestep/100-199" not in reader.Tags()["scalars"]
    assert reader.Images("preview")[0].encoded_image_string == png


def test_a_resumed_log_takes_the_place_of_what_was_lost(tmp_path: Path, history: History) -> None:
    for first, last in ((0, 130), (100, 200)):  # killed at 130, gone on from a checkpoint
        log = LiveLog(tmp_path)
        log.started(first)
        for step in range(first, last):
            log.stepped(step, history, 10.0)
        log.ended()
    reader = shown(tmp_path)
    assert [event.step for event in reader.Scalars("training/loss")] == list(range(200))
    assert reader.Scalars("training/images per second")[0].value == 10
    assert [e.step for e in reader.Scalars("training by timestep/000-099")] == [99, 199]
