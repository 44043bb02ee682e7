"""The processes that finetune: this one, or several that share each batch.

    python -m torch.distributed.run --nproc-per-node N -m tasks.finetune_process FOLDER

In: `job.json` in a folder. Out: in the same folder what the unit holds, and `facts.json`. The first
process tells how it goes in lines of JSON; a refusal is left as `refused.txt`.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import accumulate, groupby
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from diffmining_core.errors import ImageError, InputError
from diffmining_core.finetuning.images import Described, TrainingImage
from diffmining_core.finetuning.losses import History, held_out_summary, rising_since
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.images.pixels import load_pixels
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.files import ModelSource, model_digest
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.report.shown_addresses import without_paths
from diffmining_core.results.references import Shard
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root
from tasks.index import dataset_counts, good_images

if TYPE_CHECKING:
    from diffmining_core.finetuning.listener import Listener
    from diffmining_core.finetuning.training import Kept, Trained, Work

UNIT_FOLDER = "unit"
MODEL, LORA, SNAPSHOTS, PREVIEWS, LOGS = "model", "lora", "snapshots", "previews", "tensorboard"
LOSSES, HELD_OUT = "losses.json", "held_out.json"
REFUSED = "refused.txt"

TOLD = "diffmining finetune: "
"""Begins the lines in which a process tells how it goes."""

LAST_LINES = 40
"""Of what the processes said before they ended, kept for the error."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneJob:
    """All that a process needs to know; `folder` is the unit's own at the root."""

    root: str
    folder: str
    dataset: tuple[Shard, ...]
    source: ModelSource
    device: str
    options: Mapping[str, Any]
    running: FinetuneRunning

    def write(self, folder: Path) -> None:
        """Leave the job for other processes."""
        (folder / "job.json").write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> FinetuneJob:
        """The job that lies in a folder."""
        found = json.loads((folder / "job.json").read_text())
        shards = (_as_tuples(shard) for shard in found.pop("dataset"))
        return cls(
            dataset=tuple(Shard(**shard) for shard in shards),
            source=ModelSource(**found.pop("source")),
            running=FinetuneRunning(**found.pop("running")),
            **found,
        )


def _as_tuples(shard: dict[str, Any]) -> dict[str, Any]:
    """A shard's fields with tuples where JSON has lists."""
    return {
        name: tuple(tuple(v) if isinstance(v, list) else v for v in value)
        if isinstance(value, list)
        else value
        for name, value in shard.items()
    }


class ShardImages:
    """The good images of many shards by index; a few shards' tables in memory at a time.

    The rows of one image, which stand side by side, are one image with several labels.
    """

    def __init__(self, root: str, dataset: Sequence[Shard], size: int) -> None:
        self.size = size
        self.ends = list(accumulate(shard.images for shard in dataset))
        opened = open_root(root)
        self._images = lru_cache(maxsize=64)(
            lambda place: [
                list(rows)
                for _, rows in groupby(
                    good_images(opened, dataset[place]), lambda row: (row.image_id, row.uri)
                )
            ]
        )

    def __len__(self) -> int:
        return self.ends[-1]

    def describe(self, index: int) -> Described:
        """The image's id, labels and detail."""
        rows = self._rows(index)
        return Described(rows[0].image_id, tuple(row.label for row in rows), _detail(rows))

    def load(self, index: int) -> TrainingImage | None:
        """The image; None for one that nobody had opened before and that cannot be used.

        It is set aside by name where its typicality would be measured.
        """
        rows = self._rows(index)
        try:
            pixels = load_pixels(rows[0].uri, self.size, rows[0].image_id)
        except ImageError as error:
            if not rows[0].declared:
                raise
            logger.warning("finetuning goes on without an image: %s", error)
            return None
        described = self.describe(index)
        return TrainingImage(
            pixels, described.labels, described.detail, described.image_id, rows[0].uri
        )

    def _rows(self, index: int) -> list[ShardImage]:
        place = bisect_right(self.ends, index)
        return self._images(place)[index - self.ends[place]]


def _detail(rows: Sequence[ShardImage]) -> str | None:
    return next((row.detail for row in rows if row.detail), None)


def kept_at(root: str, folder: str, checkpoints: int | None) -> Kept:
    """Where an unfinished finetuning keeps what it has; all of it below its checkpoints."""
    from diffmining_core.finetuning.training import Kept

    opened, place = open_root(root), f"{folder}/checkpoints"
    return Kept(
        RootCheckpoints(opened, place, checkpoints),
        RootCheckpoints(opened, f"{place}/{SNAPSHOTS}", None),
        RootCheckpoints(opened, f"{place}/{PREVIEWS}", None),
    )


def log_folder(root: str, folder: str) -> Path:
    """Where TensorBoard's log of an unfinished finetuning lies; always on this machine."""
    here = open_root(root).local(f"{folder}/checkpoints/{LOGS}")
    return here or Path(gettempdir()) / f"diffmining-{folder.replace('/', '-')}"


def train_job(job: FinetuneJob, folder: Path, listeners: Sequence[Listener]) -> None:
    """Train, and leave in `folder` what the unit holds and `facts.json`."""
    import torch

    from diffmining_core.finetuning.events import LiveLog
    from diffmining_core.finetuning.training import Work, train
    from diffmining_core.models.pipelines import load_pipeline

    # Weights stay in float32 while they are trained; autocast lowers the arithmetic.
    pipeline = load_pipeline(job.source, job.device, torch.float32)
    options = FinetuneOptions.from_options(job.options)
    labels = sorted(dataset_counts(job.dataset))
    work = Work(
        pipeline=pipeline,
        images=ShardImages(job.root, job.dataset, options.size),
        prompts=PromptTemplate.from_options(job.options),
        labels=labels,
        options=options,
        running=job.running,
        kept=kept_at(job.root, job.folder, job.running.checkpoints_kept),
        scratch=folder,
    )
    trained = train(work, [*listeners, LiveLog(log_folder(job.root, job.folder))])
    if trained.in_charge:
        facts = _write_unit(job, work, trained, folder / UNIT_FOLDER)
        (folder / "facts.json").write_text(json.dumps(facts))


def _write_unit(job: FinetuneJob, work: Work, trained: Trained, folder: Path) -> dict[str, Any]:
    """Everything that is published, and the facts about it."""
    from diffmining_core.finetuning.card import model_card
    from diffmining_core.finetuning.events import write_log
    from diffmining_core.finetuning.training import PREVIEW
    from diffmining_core.finetuning.weights import save_lora, save_merged

    history, options, pipeline = trained.history, work.options, work.pipeline
    forwards = pipeline.unet_forwards
    (folder / PREVIEWS).mkdir(parents=True)
    previews = {}
    for step, fetched in _fetched(work.kept.previews):
        previews[step] = (fetched / PREVIEW).read_bytes()
        (folder / PREVIEWS / f"{step}.png").write_bytes(previews[step])
    write_log(folder / LOGS, history, options, previews)
    (folder / LOSSES).write_text(json.dumps(history.as_json(options)))
    (folder / HELD_OUT).write_text(json.dumps(trained.held_out_ids))

    save_merged(pipeline, folder / MODEL)
    base = without_paths(str(job.source))
    card = model_card(base, job.options, dataset_counts(job.dataset), history)
    (folder / MODEL / "README.md").write_text(card)
    if options.lora_rank:
        save_lora(pipeline.unet, folder / LORA)
    digests = _write_snapshots(work, folder / SNAPSHOTS)  # last, for they take the UNet's place
    return {
        "digest": model_digest(folder / MODEL),
        "snapshot_digests": digests,
        "labels": list(work.labels),
        "held_out": HELD_OUT,
        **_losses_in_short(history),
        "precision": trained.precision,
        "images_per_second": trained.images_per_second,
        "counts": {"images": len(work.images), "unet_forwards": forwards},
    }


def _write_snapshots(work: Work, folder: Path) -> dict[str, str]:
    """The models of the steps that are also kept; their digests by step."""
    from safetensors.torch import load_file

    from diffmining_core.finetuning.training import SNAPSHOT
    from diffmining_core.finetuning.weights import put_weights, save_merged

    digests = {}
    for step, fetched in _fetched(work.kept.snapshots):
        put_weights(work.pipeline.unet, load_file(fetched / SNAPSHOT))
        save_merged(work.pipeline, folder / str(step))
        digests[str(step)] = model_digest(folder / str(step))
    return digests


def _fetched(kept: RootCheckpoints) -> Iterator[tuple[int, Path]]:
    """Each step that was kept, and a folder that holds its files until the next."""
    for step in kept.steps():
        with TemporaryDirectory() as folder:
            kept.fetch(step, Path(folder))
            yield step, Path(folder)


def _losses_in_short(history: History) -> dict[str, Any]:
    """What the losses say of overfitting and divergence."""
    held_out = held_out_summary(history.evaluations)
    return {
        "best_step": held_out.best_step if held_out else None,
        "held_out_loss": {"least": held_out.least, "end": held_out.end, "rose": held_out.rose}
        if held_out
        else None,
        "rising_since": rising_since(history.losses),
    }


def train_in_processes(
    job: FinetuneJob, folder: Path, said: Callable[[Mapping[str, Any]], None]
) -> None:
    """The same by several processes; `said` gets what the first one tells.

    InputError as one of them raised it; ChildProcessError, which may pass, if one was killed.
    """
    job.write(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={job.running.processes}", "-m", __name__, str(folder)]
    last: deque[str] = deque(maxlen=LAST_LINES)
    # The workers end when they can no longer tell: when this process has died.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        try:
            for line in run.stdout:
                if told := _told(line):
                    said(told)
                else:
                    last.append(line.rstrip())
        except BaseException:
            run.terminate()
            raise
    if run.returncode:
        raise _failure(folder, last)


def _failure(folder: Path, last: Sequence[str]) -> Exception:
    """Why the processes ended: as one of them left it, or as their starter tells."""
    refused = folder / REFUSED
    if refused.exists():
        return InputError(refused.read_text())
    text = "\n".join(last)
    killed = re.search(r"exitcode\s*:\s*-(\d+)", text)
    if killed:
        return ChildProcessError(
            f"a process that finetunes was killed by signal {killed[1]}, often for want of memory; "
            "its checkpoints are kept and the next run goes on from them"
        )
    return RuntimeError(f"a process that finetunes has failed; it said last:\n{text}")


def _told(line: str) -> dict[str, Any] | None:
    if line.startswith(TOLD):
        with suppress(ValueError):
            found: dict[str, Any] = json.loads(line.removeprefix(TOLD))
            return found
    return None


def tell(**words: Any) -> None:
    """Tell the process that started this one."""
    print(TOLD + json.dumps(words), flush=True)


class _Warnings(logging.Handler):
    """Passes warnings on to the process that started this one."""

    def emit(self, record: logging.LogRecord) -> None:
        tell(warning=record.getMessage())


def main(folder: Path) -> None:
    """Be one of the processes of the job in a folder."""
    from diffmining_core.finetuning.listener import Listener

    class Teller(Listener):
        def started(self, first: int) -> None:
            tell(first=first)

        def stepped(self, step: int, history: History, images_per_second: float) -> None:
            loss = float(history.losses[step])
            tell(step=step, loss=loss, images_per_second=images_per_second)

    rank = int(os.environ["LOCAL_RANK"])
    if rank == 0:
        for name in ("diffmining_core", "tasks"):
            logging.getLogger(name).addHandler(_Warnings(logging.WARNING))
    job = FinetuneJob.read(folder)
    if job.device.startswith("cuda"):
        job = replace(job, device=f"cuda:{rank}")
    try:
        train_job(job, folder, [Teller()])
    except InputError as error:
        (folder / REFUSED).write_text(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
