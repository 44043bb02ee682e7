"""Mine what is typical of each label: from a folder of labelled images to a page of results."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from diffmining_core.images.shards import check_labels
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.signs import Sign
from diffmining_core.store.ledger import CorruptFileError, Manifest, is_intact, published, retract
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.checks import check_inputs
from flows.fan_out import run_missing
from flows.finetune import image_geometry, train
from flows.index import index_split
from flows.parameters import MineParameters
from tasks.clusters import clusters, clusters_unit, lowered_k
from tasks.evaluation import (
    evaluate,
    evaluation_unit,
    measured_truth,
    truth_digest,
    truth_file,
)
from tasks.features import features, features_unit
from tasks.finetune import (
    finetuned_before,
    finetuned_model,
    shards_trained_on,
    trained_on,
)
from tasks.index import Shard, dataset_counts
from tasks.models import ModelReference, base_model, choose_device
from tasks.patches import patches, patches_unit
from tasks.report import (
    publish_page,
    publish_summary,
    report,
    report_unit,
    summarised_report,
)
from tasks.results import Results
from tasks.selection import label_digests, select, selection_unit
from tasks.signs import found_signs, signs, signs_unit
from tasks.typicality import set_aside_count, typicality, wanted_unit
from tasks.units import CorruptUnitsError, Done
from tasks.verification import retract_all, verify


@flow(name="mine", flow_run_name="mine {parameters.dataset}", log_prints=True)
def mine(parameters: MineParameters) -> dict[str, Any]:
    """Index, finetune, measure typicality, pick patches, cluster them and draw the page.

    Returns the summary that is also kept as `summary.json` at the root. Every stage keeps its
    results at the root, so a rerun computes only what is missing. A stored result that proves
    damaged where it is read is taken back and made anew, once each.
    """
    logger = get_run_logger()
    run = RunLedger()
    check_inputs(parameters)
    if parameters.mode == "verify":
        run.repair(parameters.root, verify(parameters.root))
    elif parameters.mode == "recompute":
        retract_all(parameters.root)
    while True:
        try:
            summary = mine_once(parameters, run)
            break
        except CorruptFileError as error:
            run.repair(parameters.root, [error])
        except CorruptUnitsError as error:
            run.repair(parameters.root, error.damaged)
    create_markdown_artifact(summary_markdown(summary), key="mine", description=summary["page"])
    logger.info("The page of results is %s", summary["page"])
    return summary


def mine_once(parameters: MineParameters, run: RunLedger) -> dict[str, Any]:
    """One pass through all stages, each computing what is missing; returns the summary."""
    root, settings = parameters.root, parameters.settings()
    with run.stage("index"):
        units, dataset = index_split(parameters, MINED)
        run.add(units)
        counts = dataset_counts(dataset)
        check_labels(counts, parameters.min_images)
        trained = dataset
        if settings.finetune_steps and settings.recipe.trains_on_others:
            units, trained = index_split(parameters, TRAIN)
            run.add(units)
        base = base_model(parameters.model_source())
        geometry = image_geometry(parameters)
        size, cell = geometry.size, geometry.cell

    with run.stage("finetune"):
        model, notes = finetune_model(parameters, trained, size, run)
    for note in notes:
        get_run_logger().warning(note)

    compared = dataset if trained is not dataset else shards_trained_on(root, model, dataset)
    if model == base:
        compared = []
    elif parameters.before_shards >= 0:
        compared = compared[: parameters.before_shards]
    sides = {"typicality": (dataset, model), "typicality_before": (compared, base)}
    after_keys, before_keys = measure(parameters, sides, size, run)
    unusable = set_aside_count(root, dataset, after_keys)

    with run.stage("patches"):
        patch_options = parameters.patch_options(size, cell)
        picked = pick_patches(parameters, [*after_keys, *before_keys], patch_options, run)
    with run.stage("selection"):
        chosen_from = [(dataset, [picked[key] for key in after_keys])]
        if compared:
            chosen_from.append((compared, [picked[key] for key in before_keys]))
        selection, *before = choose(parameters, chosen_from, run)

    digests = label_digests(root, selection)
    with run.stage("features"):
        embedded = embed(parameters, selection, digests, model, size, run)
    with run.stage("clusters"):
        clustered = cluster(parameters, embedded, run)
        lowered = (lowered_k(root, key, parameters.k) for key in clustered.values())
        notes += [sentence for sentence in lowered if sentence]

    results = Results(
        dataset=tuple(dataset),
        images=sum(shard.images for shard in dataset) - unusable,
        size=size,
        typicality=tuple(after_keys),
        selection=selection,
        clusters=tuple(clustered.items()),
        finetune=model.finetuned,
        compared=tuple(compared),
        typicality_before=tuple(before_keys),
        selection_before=before[0] if before else None,
    )
    truth = None
    if truth_url := truth_file(parameters.dataset):
        with run.stage("evaluation"):
            digest = truth_digest(truth_url)
            unit = evaluation_unit(results, digest, cell)
            plan_stage(open_root(root), unit.stage, [unit.key])
            (done,) = run.add([evaluate(root, truth_url, digest, results, cell)])
            truth = measured_truth(root, done.key)

    with run.stage("signs"):
        unit = signs_unit(results, cell)
        plan_stage(open_root(root), unit.stage, [unit.key])
        (done,) = run.add([signs(root, results, cell)])
        seen = done.key
    with run.stage("report"):
        title = f"What is typical in {dataset_name(parameters)}"
        facts = page_facts(parameters, results, patch_options["size"], notes)
        unit = report_unit(results, facts, truth, seen)
        plan_stage(open_root(root), unit.stage, [unit.key])
        (done,) = run.add([report(root, title, results, facts, truth, seen)])
        page = publish_page(root, done.key)

    summary = {
        **(truth or {}),
        **run.summary(),
        "images": results.images,
        "set_aside": sum(shard.set_aside for shard in dataset) + unusable,
        "labels": counts,
        "shards": len(dataset),
        "notes": notes,
        "signs": [sign.as_json() for sign in found_signs(root, seen)],
        "report": done.key,
        "page": page,
    }
    # A rerun that finds everything leaves the numbers of the run that made the page.
    if any(unit.computed for unit in run.done) or summarised_report(root) != done.key:
        publish_summary(root, summary)
    return summary


class RunLedger:
    """What this run did: units, repairs, seconds per stage, UNet forwards; for the summary."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done: list[Done] = []
        self.met: set[str] = set()
        self.repaired: dict[str, str] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of one stage, over all passes."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started

    def repair(self, root: str, damaged: Iterable[CorruptFileError]) -> None:
        """Take damaged units back, so that the next pass makes them anew.

        A unit that is damaged again in the same run is raised: the storage itself is to be mended.
        """
        once_each = {f"{error.stage}/{error.key}": error for error in damaged}
        for unit, error in once_each.items():
            if unit in self.met:
                raise error
            self.met.add(unit)
            opened = open_root(root)
            if is_intact(opened, error.stage, error.key):
                get_run_logger().warning("%s was read wrongly once: %s", unit, error)
                continue
            self.repaired[unit] = str(error)
            get_run_logger().warning("%s is made anew: %s", unit, error)
            retract(opened, error.stage, error.key)

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
            "stages": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "peak_memory_mb": peak_memory_mb(),
            "computed": dict(computed),
            "unet_forwards": forwards,
            "repaired": self.repaired,
        }


def finetune_model(
    parameters: MineParameters, trained: list[Shard], size: int, run: RunLedger
) -> tuple[ModelReference, list[str]]:
    """The model to mine with, and sentences about it that its user should read."""
    start = base_model(parameters.start_source())
    if parameters.settings().finetune_steps == 0:
        return start, []
    root, options = parameters.root, parameters.finetune_options(size)
    kept = finetuned_before(root, trained, start, options)
    current = {shard.content_id for shard in trained}
    if kept is None or (parameters.retrain and set(kept.inputs[1:]) != current):
        (done,) = run.add([train(parameters, trained, start, options)])
        return finetuned_model(root, start, done.key), []
    plan_stage(open_root(root), kept.stage, [kept.key])
    return finetuned_model(root, start, kept.key), notes_on_kept(kept, trained)


def notes_on_kept(kept: Manifest, dataset: list[Shard]) -> list[str]:
    """What the model that is kept does not know of the dataset as it is now."""
    notes = []
    unseen = sorted(set(dataset_counts(dataset)) - set(kept.facts["labels"]))
    seen = trained_on(kept, dataset)
    if unseen:
        notes.append(
            f"The model was finetuned before {', '.join(unseen)} came to the dataset and does not "
            "know what is typical of it; run once with --retrain."
        )
    elif len(seen) < len(dataset):
        notes.append(
            f"The model kept was finetuned on {len(seen)} of {len(dataset)} shards; "
            "--retrain finetunes on all."
        )
    if set(kept.inputs[1:]) - {shard.content_id for shard in dataset}:
        notes.append(
            "The model kept was finetuned also on images that have since left the dataset or got "
            "another label; --retrain finetunes without them."
        )
    return notes


def measure(
    parameters: MineParameters,
    sides: Mapping[str, tuple[Sequence[Shard], ModelReference]],
    size: int,
    run: RunLedger,
) -> list[list[str]]:
    """The keys of the maps of each side: some shards under one model, by the name of its time."""
    root, options = parameters.root, parameters.typicality_options(size)
    there = published(open_root(root), "typicality")
    work = {
        name: [(wanted_unit(shard, model, options, there), (shard, model)) for shard in shards]
        for name, (shards, model) in sides.items()
    }
    keys = [unit.key for units in work.values() for unit, _ in units]
    plan_stage(open_root(root), "typicality", keys)

    def measure_shard(work: tuple[Shard, ModelReference]) -> State[Done]:
        device = choose_device(parameters.device)
        return typicality(
            root,
            *work,
            options,
            device,
            parameters.batch_size,
            parameters.max_bad_share,
            return_state=True,
        )

    measured = []
    for name, units in work.items():
        with run.stage(name):
            measured.append(
                [done.key for done in run.add(run_missing(units, there, measure_shard))]
            )
    return measured


def pick_patches(
    parameters: MineParameters, typicality_keys: list[str], options: dict[str, Any], run: RunLedger
) -> dict[str, str]:
    """The keys of the patches of these maps, by the keys of the maps."""
    keys = {key: patches_unit(key, options).key for key in typicality_keys}
    there = planned_there(parameters.root, "patches", keys.values())
    if missing := [key for key in keys if keys[key] not in there]:
        run.add(patches(parameters.root, missing, options, parameters.patch_workers))
    return keys


def choose(
    parameters: MineParameters, sides: Sequence[tuple[list[Shard], list[str]]], run: RunLedger
) -> list[str]:
    """The keys of the selections of each side: some shards, and the patches of each."""
    root, top, seed = parameters.root, parameters.top, parameters.seed
    keys = [selection_unit(shards, patches_keys, top, seed).key for shards, patches_keys in sides]
    plan_stage(open_root(root), "selection", keys)
    for shards, patches_keys in sides:
        run.add([select(root, shards, patches_keys, top, seed, parameters.patch_workers)])
    return keys


def embed(
    parameters: MineParameters,
    selection: str,
    digests: dict[str, str],
    model: ModelReference,
    size: int,
    run: RunLedger,
) -> dict[str, str]:
    """The keys of the features of each label's highest patches."""
    root = parameters.root
    options = parameters.features_options(size)
    work = [
        (features_unit(label, digest, model, options), (label, digest))
        for label, digest in digests.items()
    ]

    def embed_label(work: tuple[str, str]) -> State[Done]:
        device = choose_device(parameters.device)
        return features(root, *work, selection, model, options, device, return_state=True)

    there = planned_there(root, "features", [unit.key for unit, _ in work])
    done = run.add(run_missing(work, there, embed_label))
    return dict(zip(digests, (unit.key for unit in done), strict=True))


def cluster(parameters: MineParameters, embedded: dict[str, str], run: RunLedger) -> dict[str, str]:
    """The keys of each label's clusters."""
    root, k = parameters.root, parameters.k
    work = [(clusters_unit(key, k), (label, key)) for label, key in embedded.items()]

    def cluster_label(work: tuple[str, str]) -> State[Done]:
        return clusters(root, *work, k, return_state=True)

    there = planned_there(root, "clusters", [unit.key for unit, _ in work])
    done = run.add(run_missing(work, there, cluster_label))
    return dict(zip(embedded, (unit.key for unit in done), strict=True))


def planned_there(root: str, stage: str, keys: Iterable[str]) -> set[str]:
    """Note the wanted units of a stage; returns the keys of those that are there."""
    opened = open_root(root)
    plan_stage(opened, stage, keys)
    return published(opened, stage)


def dataset_name(parameters: MineParameters) -> str:
    """What a heading calls the dataset: its folder, without the pattern that stands for splits."""
    return parameters.dataset.rstrip("/*").rpartition("/")[2].replace("_", " ")


def page_facts(
    parameters: MineParameters, results: Results, patch_size: int, notes: list[str]
) -> dict[str, Any]:
    """How the page was made, for its readers."""
    settings = parameters.settings()
    return {
        "notes": notes,
        "dataset": {
            "folder": parameters.dataset,
            **({"recipe": settings.recipe.title} if parameters.recipe else {}),
            "images": results.images,
            "set aside": sum(shard.images + shard.set_aside for shard in results.dataset)
            - results.images,
            "shards": len(results.dataset),
        },
        "model": {
            "base": parameters.model,
            "prompt": settings.prompts.conditioned,
            "null prompt": settings.prompts.null or "(empty)",
            "finetuning steps": settings.finetune_steps,
            "image size": f"{results.size} px",
        },
        "typicality": {
            "draws": parameters.draws,
            "timesteps": "{} to {}".format(*settings.t_range),
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
    """The summary as a table for the Prefect UI, and what to doubt about it."""
    rows = [
        ("images", summary["images"]),
        ("set aside", summary["set_aside"]),
        ("shards", summary["shards"]),
        ("UNet forwards", summary["unet_forwards"]),
        ("seconds", summary["seconds"]),
        ("page", summary["page"]),
    ]
    table = "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)
    said = [f"- {Sign.from_json(sign).as_text()}" for sign in summary["signs"]]
    return "\n".join([table, "", "**Signs of failure**", "", *said]) if said else table
