"""TensorBoard's log of a finetuning: losses, rates and previews by step.

While a model trains, the log lies in a local folder with the true times. The one that is published
with the model is written from what the run keeps, with one second per step for its clock, so that
its bytes are the same however often the run was interrupted.
"""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.losses import Evaluation, History
from diffmining_core.finetuning.options import FinetuneOptions

STEPS_PER_FLUSH = 20
STEPS_PER_BIN_ROW = 100

logger = logging.getLogger(__name__)


class EventLog:
    """Writes one file of events; a part of what the file before it holds may be taken back.

    clock: seconds since 1970 at a step.
    """

    def __init__(self, file: Path, clock: Callable[[int], float], first: int = 0) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file.open("wb")
        self.records = RecordWriter(self.file)
        self.clock = clock
        self._write(Event(wall_time=clock(first), file_version="brain.Event:2"))
        # TensorBoard then forgets the events from this step on that an interrupted run wrote.
        start = SessionLog(status=SessionLog.START)
        self._write(Event(wall_time=clock(first), step=first, session_log=start))
        self.file.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Note some numbers at a step."""
        summary = Summary(
            value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        )
        self._write(Event(wall_time=self.clock(step), step=step, summary=summary))
        if step % STEPS_PER_FLUSH == 0:
            self.file.flush()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Note a measurement on held-out images."""
        bins = np.nanmean(evaluation.held_out, 0)
        self.scalars(
            evaluation.step,
            {
                "held out/loss": float(evaluation.held_out.mean()),
                "held out/trained on": float(evaluation.seen.mean()),
                **{f"held out by timestep/{_bin(i)}": float(loss) for i, loss in enumerate(bins)},
            },
        )
        self.file.flush()

    def picture(self, step: int, png: bytes) -> None:
        """Note a preview."""
        width, height = Image.open(io.BytesIO(png)).size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag="preview", image=image)])
        self._write(Event(wall_time=self.clock(step), step=step, summary=summary))
        self.file.flush()

    def close(self) -> None:
        """Write what is left."""
        self.records.close()

    def _write(self, event: Event) -> None:
        self.records.write(event.SerializeToString())


class LiveLog(Listener):
    """The log of a training under way: a new file in a folder whenever it goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log: EventLog | None = None

    def started(self, first: int) -> None:
        """Open a file that takes the place of what an earlier run wrote from step `first` on."""
        name = f"events.out.tfevents.{time.time_ns()}.{uuid4().hex}"
        self.log = EventLog(self.folder / name, lambda _step: time.time(), first)
        logger.info("To watch it train: tensorboard --logdir %s", self.folder)

    def stepped(self, step: int, history: History, images_per_second: float) -> None:
        """Note the step's loss and the rate so far, now and then the loss by timestep."""
        assert self.log is not None
        values = {"training/loss": float(history.losses[step])}
        values["training/images per second"] = images_per_second
        self.log.scalars(step, values)
        if (step + 1) % STEPS_PER_BIN_ROW == 0:
            recent = slice(step + 1 - STEPS_PER_BIN_ROW, step + 1)
            self.log.scalars(step, by_timestep(history.by_timestep(recent)))

    def evaluated(self, evaluation: Evaluation) -> None:
        """Note the losses on held-out images and beside them."""
        assert self.log is not None
        self.log.evaluated(evaluation)

    def previewed(self, step: int, png: bytes) -> None:
        """Note the picture."""
        assert self.log is not None
        self.log.picture(step, png)

    def ended(self) -> None:
        """Write what is left."""
        if self.log is not None:
            self.log.close()


def write_log(
    folder: Path, history: History, options: FinetuneOptions, previews: Mapping[int, bytes]
) -> None:
    """The whole log of a finished training as one file in `folder`."""
    log = EventLog(folder / "events.out.tfevents.0.diffmining", float)
    for step, loss in enumerate(history.losses):
        values = {"training/loss": float(loss)}
        values["training/learning rate"] = options.learning_rate_at(step)
        log.scalars(step, values)
    table = history.as_json(options)["bins"]
    for step, row in zip(table["step"], table["loss"], strict=True):
        log.scalars(step, by_timestep(row))
    for evaluation in history.evaluations:
        log.evaluated(evaluation)
    for step, png in sorted(previews.items()):
        log.picture(step, png)
    log.close()


def by_timestep(losses: list[float | None]) -> dict[str, float]:
    """Training losses by timestep bin under the names that TensorBoard shows."""
    return {
        f"training by timestep/{_bin(i)}": loss for i, loss in enumerate(losses) if loss is not None
    }


def _bin(number: int) -> str:
    return f"{100 * number:03d}-{100 * number + 99:03d}"
