"""Mine what is typical of each label: from a folder of labelled images to a page of results."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from diffmining_core.images.shards import FoundImage, check_labels, plan_index
from diffmining_core.models.files import find_model, model_geometry
from flows.checks import check_inputs
from flows.fan_out import run_missing
from flows.parameters import MineParameters
from tasks.clusters import clusters, clusters_unit, lowered_k
from tasks.evaluation import evaluate, measured_truth, truth_file
from tasks.features import features, features_unit
from tasks.finetune import (
    dataset_counts,
    finetune,
    finetuned_before,
    finetuned_model,
    shards_trained_on,
)
from tasks.index import Shard, index, index_unit, known_shards, shard_reference
from tasks.models import ModelReference, base_model, choose_device
from tasks.patches import patches, patches_unit
from tasks.report import Results, publish_page, publish_summary, report, summarised_report
from tasks.selection import label_digests, select
from tasks.typicality import typicality, typicality_unit
from tasks.units import Done


@flow(name="mine", flow_run_name="mine {parameters.dataset}", log_prints=True)
def mine(parameters: MineParameters) -> dict[str, Any]:
    """Index, finetune, measure typicality, pick patches, cluster them and draw the page.

    Returns the summary that is also kept as `summary.json` at the root. Every stage keeps its
    results at the root, so a rerun computes only what is missing.
    """
    logger = get_run_logger()
    ledger = RunLedger()
    root = parameters.root
    with ledger.stage("index"):
        found = check_inputs(parameters)
        dataset = index_dataset(parameters, found, ledger)
        counts = dataset_counts(dataset)
        check_labels(counts, parameters.min_images)
        base = base_model(parameters.model)
        geometry = model_geometry(find_model(parameters.model))
        size, cell = parameters.size or geometry.size, geometry.cell

    with ledger.stage("finetune"):
        model, notes = finetune_model(parameters, dataset, base, size, ledger)
    for note in notes:
        logger.warning(note)

    options = parameters.typicality_options(size)
    compared = shards_trained_on(root, model, dataset)
    if parameters.before_shards >= 0:
        compared = compared[: parameters.before_shards]
    with ledger.stage("typicality"):
        after_keys = typicality_of(parameters, dataset, model, options, ledger)
    with ledger.stage("typicality_before"):
        before_keys = typicality_of(parameters, compared, base, options, ledger)

    with ledger.stage("patches"):
        patch_options = parameters.patch_options(size, cell)
        selection = selection_of(parameters, dataset, after_keys, patch_options, ledger)
        selection_before = (
            selection_of(parameters, compared, before_keys, patch_options, ledger)
            if compared
            else None
        )

    with ledger.stage("features"):
        digests = label_digests(root, selection)
        feature_options = {"prompt": parameters.prompt, "size": size, "seed": parameters.seed}
        feature_units = ledger.add(
            run_missing(
                root,
                [
                    (features_unit(label, digest, model, feature_options), (label, digest))
                    for label, digest in digests.items()
                ],
                lambda work: features(
                    root,
                    *work,
                    selection,
                    model,
                    feature_options,
                    choose_device(parameters.device),
                    return_state=True,
                ),
            )
        )
    with ledger.stage("clusters"):
        labelled = dict(zip(digests, feature_units, strict=True))
        cluster_units = ledger.add(
            run_missing(
                root,
                [
                    (clusters_unit(done.key, parameters.k), (label, done.key))
                    for label, done in labelled.items()
                ],
                lambda work: clusters(root, *work, parameters.k, return_state=True),
            )
        )
        lowered = (lowered_k(root, done.key, parameters.k) for done in cluster_units)
        notes += [sentence for sentence in lowered if sentence]

    results = Results(
        dataset=tuple(dataset),
        size=size,
        typicality=tuple(after_keys),
        selection=selection,
        clusters=tuple(
            (label, done.key) for label, done in zip(digests, cluster_units, strict=True)
        ),
        finetune=model.finetuned,
        compared=tuple(compared),
        typicality_before=tuple(before_keys),
        selection_before=selection_before,
    )
    truth = None
    if truth_url := truth_file(parameters.dataset):
        with ledger.stage("evaluation"):
            (done,) = ledger.add([evaluate(root, truth_url, results, cell)])
            truth = measured_truth(root, done.key)

    with ledger.stage("report"):
        facts = page_facts(parameters, dataset, size, patch_options["size"], notes)
        (done,) = ledger.add([report(root, page_title(parameters), results, facts, truth)])
        page = publish_page(root, done.key)

    summary = {
        **(truth or {}),
        **ledger.summary(),
        "images": sum(counts.values()),
        "set_aside": sum(shard.set_aside for shard in dataset),
        "labels": counts,
        "shards": len(dataset),
        "notes": notes,
        "report": done.key,
        "page": page,
    }
    # A rerun that finds everything leaves the numbers of the run that made the page.
    if any(unit.computed for unit in ledger.done) or summarised_report(root) != done.key:
        publish_summary(root, summary)
    create_markdown_artifact(summary_markdown(summary), key="mine", description=page)
    logger.info("The page of results is %s", page)
    return summary


class RunLedger:
    """What this run did: units, seconds per stage, UNet forwards; for the summary."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done: list[Done] = []
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of one stage."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)

    def add(self, done: Iterable[Done]) -> list[Done]:
        """Note finished units."""
        finished = list(done)
        self.done += finished
        return finished

    def summary(self) -> dict[str, Any]:
        """Seconds, memory, units computed and UNet forwards of this run."""
        computed = Counter(unit.stage for unit in self.done if unit.computed)
        forwards = sum(u.counts.get("unet_forwards", 0) for u in self.done if u.computed)
        return {
            "seconds": round(time.monotonic() - self.started, 2),
            "stages": self.seconds,
            "peak_memory_mb": peak_memory_mb(),
            "computed": dict(computed),
            "unet_forwards": forwards,
        }


def index_dataset(
    parameters: MineParameters, found: list[FoundImage], ledger: RunLedger
) -> list[Shard]:
    """The dataset's shards, of which only those with new images are indexed now."""
    plan = plan_index(found, known_shards(parameters.root), parameters.shard_rows)
    new = ledger.add(
        run_missing(
            parameters.root,
            [(index_unit(files), files) for files in plan.new],
            lambda files: index(
                parameters.root, files, parameters.max_bad_share, return_state=True
            ),
        )
    )
    keys = [*plan.keep, *(done.key for done in new)]
    references = [shard_reference(parameters.root, key) for key in keys]
    # By content, so that neither the folder's place nor the order of arrival decides anything.
    return sorted(references, key=lambda shard: (shard.content_id, shard.key))


def finetune_model(
    parameters: MineParameters,
    dataset: list[Shard],
    base: ModelReference,
    size: int,
    ledger: RunLedger,
) -> tuple[ModelReference, list[str]]:
    """The model to mine with, and sentences about it that its user should read."""
    if parameters.finetune_steps == 0:
        return base, []
    options = parameters.finetune_options(size)
    kept = finetuned_before(parameters.root, dataset, base, options)
    if kept is None or (parameters.retrain and len(kept.inputs) - 1 < len(dataset)):
        device = choose_device(parameters.device)
        (done,) = ledger.add([finetune(parameters.root, dataset, base, options, device)])
        return finetuned_model(parameters.root, base, done.key), []
    notes = []
    unseen = sorted(set(dataset_counts(dataset)) - set(kept.facts["labels"]))
    if unseen:
        notes.append(
            f"The model was finetuned before {', '.join(unseen)} came to the dataset and does not "
            "know what is typical of it; run once with --retrain."
        )
    elif len(kept.inputs) - 1 < len(dataset):
        notes.append(
            f"The model kept was finetuned on {len(kept.inputs) - 1} of {len(dataset)} shards; "
            "--retrain finetunes on all."
        )
    return finetuned_model(parameters.root, base, kept.key), notes


def typicality_of(
    parameters: MineParameters,
    dataset: list[Shard],
    model: ModelReference,
    options: dict[str, Any],
    ledger: RunLedger,
) -> list[str]:
    """The keys of the shards' typicality maps under one model."""
    done = run_missing(
        parameters.root,
        [(typicality_unit(shard, model, options), shard) for shard in dataset],
        lambda shard: typicality(
            parameters.root,
            shard,
            model,
            options,
            choose_device(parameters.device),
            parameters.batch_size,
            return_state=True,
        ),
    )
    return [unit.key for unit in ledger.add(done)]


def selection_of(
    parameters: MineParameters,
    dataset: list[Shard],
    typicality_keys: list[str],
    patch_options: dict[str, Any],
    ledger: RunLedger,
) -> str:
    """The key of the patches selected from these maps."""
    picked = ledger.add(
        run_missing(
            parameters.root,
            [(patches_unit(key, patch_options), key) for key in typicality_keys],
            lambda key: patches(parameters.root, key, patch_options, return_state=True),
        )
    )
    keys = [unit.key for unit in picked]
    (done,) = ledger.add([select(parameters.root, dataset, keys, parameters.top, parameters.seed)])
    return done.key


def page_title(parameters: MineParameters) -> str:
    """The page's heading: the dataset's own name, without the pattern that stands for splits."""
    name = parameters.dataset.rstrip("/*").rpartition("/")[2]
    return f"What is typical in {name.replace('_', ' ')}"


def page_facts(
    parameters: MineParameters, dataset: list[Shard], size: int, patch_size: int, notes: list[str]
) -> dict[str, Any]:
    """How the page was made, for its readers."""
    return {
        "notes": notes,
        "dataset": {
            "folder": parameters.dataset,
            "images": sum(shard.images for shard in dataset),
            "set aside": sum(shard.set_aside for shard in dataset),
            "shards": len(dataset),
        },
        "model": {
            "base": parameters.model,
            "prompt": parameters.prompt,
            "null prompt": parameters.null_prompt or "(empty)",
            "finetuning steps": parameters.finetune_steps,
            "image size": f"{size} px",
        },
        "typicality": {
            "draws": parameters.draws,
            "timesteps": f"{parameters.t_min} to {parameters.t_max}",
            "seed": parameters.seed,
        },
        "patches": {
            "size": f"{patch_size} px",
            "per image": parameters.patches_per_image,
            "per label": parameters.top,
            "clusters per label": parameters.k,
        },
    }


def peak_memory_mb() -> int:
    """The most memory this process has held, in MB (macOS counts bytes, Linux KiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6) if sys.platform == "darwin" else round(peak * 1024 / 1e6)


def summary_markdown(summary: dict[str, Any]) -> str:
    """The summary as a table for the Prefect UI."""
    rows = [
        ("images", summary["images"]),
        ("set aside", summary["set_aside"]),
        ("shards", summary["shards"]),
        ("UNet forwards", summary["unet_forwards"]),
        ("seconds", summary["seconds"]),
        ("page", summary["page"]),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
