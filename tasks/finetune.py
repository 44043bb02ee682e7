"""Finetune the base model's UNet on the dataset; checkpointed, so that a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffmining_core import finetuning
from diffmining_core.errors import InputError
from diffmining_core.finetuning.losses import History
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    finished,
    read_bytes,
    read_json,
    read_manifests,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from tasks.finetune_process import (
    HELD_OUT,
    LOSSES,
    MODEL,
    PREVIEWS,
    SNAPSHOTS,
    UNIT_FOLDER,
    FinetuneJob,
    kept_at,
    log_folder,
    train_in_processes,
    train_job,
)
from tasks.models import Device, ModelReference
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

if TYPE_CHECKING:
    from diffmining_core.finetuning.listener import Listener

STAGE = "finetune"
DETAILS = "details"
"""The parameter of a unit that says which details its images had."""

logger = logging.getLogger(__name__)


def finetune_unit(dataset: Sequence[Shard], base: ModelReference, options: dict[str, Any]) -> Unit:
    """The unit of one base model, choice of shards and options (`FinetuneOptions` and prompts).

    The images' details enter where the prompts say them.
    """
    content = sorted(shard.content_id for shard in dataset)
    noted = sorted(shard.details_id for shard in dataset if shard.details_id)
    details = {}
    if noted and "detailed_prompt" in options:
        details[DETAILS] = hashlib.sha256("\n".join(noted).encode()).hexdigest()
    return Unit(STAGE, finetuning.ALGO, (base.digest, *content), {**options, **details})


@stage_task(STAGE)
def finetune(
    root: str,
    dataset: Sequence[Shard],
    base: ModelReference,
    options: dict[str, Any],
    running: dict[str, Any],
    device: Device,
) -> Done:
    """Train and publish a complete diffusers folder with its losses, snapshots, logs and a card.

    running: `FinetuneRunning`, which is in no key.
    """
    unit = finetune_unit(dataset, base, options)
    job = FinetuneJob(
        root=root,
        folder=f"{STAGE}/{unit.key}",
        dataset=tuple(dataset),
        source=base.source,
        device=device.name,
        options=options,
        running=FinetuneRunning(**running),
    )

    def produce(attempt: Attempt) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            _train(job, folder)
            attempt.write_folder(folder / UNIT_FOLDER)
            facts = json.loads((folder / "facts.json").read_text())
        attempt.counts.update(facts.pop("counts"))
        attempt.facts.update(facts, processes=job.running.processes)
        # All that an unfinished finetuning keeps lies below its checkpoints.
        kept_at(root, job.folder, None).checkpoints.remove()
        shutil.rmtree(log_folder(root, job.folder), ignore_errors=True)

    return fill(root, unit, produce, device.name)


def _train(job: FinetuneJob, folder: Path) -> None:
    steps = FinetuneOptions.from_options(job.options).steps
    with Progress("finetune", steps, "steps") as progress:
        if job.running.processes == 1:
            train_job(job, folder, [_on_bar(progress)])
            return
        _check_devices(job)

        def said(words: Mapping[str, Any]) -> None:
            if "first" in words:
                progress.start_at(words["first"])
            elif "step" in words:
                progress.advance(1, _figures(words["loss"], words["images_per_second"]))
            else:
                logger.warning("%s", words["warning"])

        train_in_processes(job, folder, said)


def _on_bar(progress: Progress) -> Listener:
    from diffmining_core.finetuning.listener import Listener

    class OnBar(Listener):
        def started(self, first: int) -> None:
            progress.start_at(first)

        def stepped(self, step: int, history: History, images_per_second: float) -> None:
            progress.advance(1, _figures(float(history.losses[step]), images_per_second))

    return OnBar()


def _figures(loss: float, images_per_second: float) -> str:
    return f"loss {loss:.4f}, {images_per_second:.3g} images/s"


def _check_devices(job: FinetuneJob) -> None:
    """InputError if the processes cannot have a GPU each."""
    if not job.device.startswith("cuda"):
        return
    import torch

    if (there := torch.cuda.device_count()) < job.running.processes:
        raise InputError(
            f"{job.running.processes} processes need as many GPUs, but this machine has {there}; "
            f"use {there}."
        )


def finetuned_before(
    root: str, dataset: Sequence[Shard], base: ModelReference, options: dict[str, Any]
) -> Manifest | None:
    """The model finetuned at this root with these options on the most of these shards.

    A dataset that has grown, shrunk or been corrected keeps the model it has; None if no model has
    seen any of it.
    """
    current = {shard.content_id for shard in dataset}
    candidates = [
        (len(trained_on(manifest, dataset)), len(current & set(manifest.inputs[1:])), manifest)
        for manifest in read_manifests(open_root(root), STAGE)
        if manifest.algo == finetuning.ALGO
        and {name: v for name, v in manifest.parameters.items() if name != DETAILS} == options
        and manifest.inputs[0] == base.digest
    ]
    # Of two that have seen as much of it, the one that has seen more of it as it is now, and then
    # the one that has seen less beside it.
    seen, _, best = max(
        candidates,
        key=lambda found: (*found[:2], -len(found[2].inputs), found[2].key),
        default=(0, 0, None),
    )
    return best if seen else None


def trained_on(manifest: Manifest, dataset: Sequence[Shard]) -> list[Shard]:
    """The shards whose images a finetuned model has seen, even if some of them are gone since."""
    seen = set(manifest.inputs[1:])
    return [shard for shard in dataset if {shard.content_id, shard.indexed_id} & seen]


def finetuned_model(root: str, base: ModelReference, key: str) -> ModelReference:
    """The reference of a published finetuned model."""
    manifest = finished(open_root(root), STAGE, key)
    return ModelReference(base.source, manifest.facts["digest"], key, MODEL)


def snapshot_model(root: str, base: ModelReference, key: str, step: int) -> ModelReference:
    """The reference of a published finetuning's model as it was after `step` steps.

    LookupError if that step's was not kept.
    """
    digests = finished(open_root(root), STAGE, key).facts["snapshot_digests"]
    if str(step) not in digests:
        raise LookupError(f"finetuning {key} kept the models of steps {list(digests)}, not {step}")
    return ModelReference(base.source, digests[str(step)], key, f"{SNAPSHOTS}/{step}")


def shards_trained_on(root: str, model: ModelReference, dataset: Sequence[Shard]) -> list[Shard]:
    """The shards that a finetuned model has seen; none for a base model."""
    if model.finetuned is None:
        return []
    return trained_on(finished(open_root(root), STAGE, model.finetuned), dataset)


def losses(root: str, key: str) -> dict[str, Any]:
    """The columns of a published finetuning's losses: `History.as_json`."""
    opened = open_root(root)
    found: dict[str, Any] = read_json(opened, finished(opened, STAGE, key), LOSSES)
    return found


def card(root: Root, key: str) -> bytes:
    """The model card of a published finetuning, Markdown."""
    return read_bytes(root, finished(root, STAGE, key), f"{MODEL}/README.md")


def last_preview(root: str, key: str) -> tuple[int, bytes] | None:
    """Step and PNG of a published finetuning's last preview; None if it made none."""
    opened = open_root(root)
    manifest = finished(opened, STAGE, key)
    steps = [Path(name).stem for name in manifest.files if Path(name).parent.name == PREVIEWS]
    if not steps:
        return None
    step = max(map(int, steps))
    return step, read_bytes(opened, manifest, f"{PREVIEWS}/{step}.png")


def held_out_ids(root: str, key: str) -> list[str]:
    """The image ids that a published finetuning was never trained on."""
    opened = open_root(root)
    found: list[str] = read_json(opened, finished(opened, STAGE, key), HELD_OUT)
    return found
