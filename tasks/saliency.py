"""A plain classifier trained on the dataset, its saliency in each shard, and its features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from diffmining_core.baselines import SALIENCY_ALGO
from diffmining_core.baselines.embedding import with_features
from diffmining_core.baselines.reading import labelled_pixels
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, finished, read_bytes
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import features, selection
from tasks.clip_ranking import write_baseline_maps
from tasks.index import dataset_counts, good_images
from tasks.progress import Progress
from tasks.units import Done, fill, stage_task

if TYPE_CHECKING:
    from diffmining_core.baselines.saliency import Classifier

STAGE, CLASSIFIER_STAGE = "saliency", "saliency_classifier"
WEIGHTS = "classifier.safetensors"


def classifier_unit(dataset: Sequence[Shard], options: dict[str, Any]) -> Unit:
    """The unit of one classifier; `options` are `TrainingOptions`' fields."""
    content = sorted(shard.content_id for shard in dataset)
    return Unit(CLASSIFIER_STAGE, SALIENCY_ALGO, tuple(content), options)


@stage_task(CLASSIFIER_STAGE)
def classifier(root: str, dataset: Sequence[Shard], options: dict[str, Any], device: str) -> Done:
    """Train and publish the classifier of a dataset."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.baselines.saliency import (
            TrainingOptions,
            classifier_bytes,
            train_classifier,
        )
        from tasks.finetune_process import ShardImages

        labels = sorted(dataset_counts(list(dataset)))
        images = ShardImages(root, dataset, options["size"])
        with Progress(CLASSIFIER_STAGE, options["steps"], "steps") as progress:
            trained = train_classifier(
                images,
                labels,
                TrainingOptions(**options),
                device,
                lambda loss: progress.advance(1, f"loss {loss:.3f}"),
            )
        attempt.write_bytes(WEIGHTS, classifier_bytes(trained))
        attempt.facts["labels"] = labels
        attempt.facts["accuracy"] = trained.accuracy

    return fill(root, classifier_unit(dataset, options), produce, device)


def trained_accuracy(root: str, key: str) -> float:
    """How often a published classifier was right on what it was trained on, at the end."""
    accuracy: float = finished(open_root(root), CLASSIFIER_STAGE, key).facts["accuracy"]
    return accuracy


def saliency_unit(shard: Shard, classifier_key: str) -> Unit:
    """The unit of one shard's maps under a classifier."""
    return Unit(STAGE, SALIENCY_ALGO, (shard.content_id, classifier_key), {})


@stage_task(STAGE, "saliency {shard.name}")
def saliency(root: str, shard: Shard, classifier_key: str, device: str) -> Done:
    """Compute and publish the maps of one shard."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.baselines.saliency import feature_map, saliency_map

        model, labels, size = _loaded(root, classifier_key, device)
        images = good_images(open_root(root), shard)
        maps, pairs = [], []
        with Progress(f"saliency {shard.name}", shard.images, "images") as progress:
            for image in labelled_pixels(images, size):
                seen = feature_map(model, image.pixels)
                for label in image.labels:
                    maps.append(saliency_map(model, seen, labels.index(label)))
                    pairs.append((image.image_id, label))
                progress.advance()
        write_baseline_maps(attempt, maps, pairs)

    return fill(root, saliency_unit(shard, classifier_key), produce, device)


def saliency_features_unit(label: str, digest: str, classifier_key: str) -> Unit:
    """The unit of one label's highest patches, among those of `tasks.features`."""
    return Unit(features.STAGE, SALIENCY_ALGO, (digest, classifier_key), {"label": label})


@stage_task(features.STAGE, "features {label}, classifier")
def saliency_features(
    root: str, label: str, digest: str, selection_key: str, classifier_key: str, device: str
) -> Done:
    """Embed the highest patches of one label by the classifier's mean feature in each."""

    def produce(attempt: Attempt) -> None:
        from diffmining_core.baselines.saliency import feature_map
        from diffmining_core.baselines.saliency import saliency_features as of_patches

        model, _, size = _loaded(root, classifier_key, device)
        opened = open_root(root)
        rows = selection.of_label(selection.selected(opened, selection_key), label, "highest")
        table = with_features(
            rows,
            size,
            lambda pixels, corners, side: of_patches(
                feature_map(model, pixels), corners, side, (pixels.shape[0], pixels.shape[1])
            ),
        )
        attempt.write_table(features.TABLE, table)
        attempt.counts["patches"] = table.num_rows

    return fill(root, saliency_features_unit(label, digest, classifier_key), produce, device)


@lru_cache(maxsize=1)
def _loaded(root: str, key: str, device: str) -> tuple[Classifier, list[str], int]:
    """A published classifier, its labels, and the size of images it is for."""
    from diffmining_core.baselines.saliency import classifier_from

    opened = open_root(root)
    manifest = finished(opened, CLASSIFIER_STAGE, key)
    labels: list[str] = manifest.facts["labels"]
    weights = read_bytes(opened, manifest, WEIGHTS)
    model = classifier_from(weights, len(labels), manifest.parameters["cell"], device)
    return model, labels, manifest.parameters["size"]
