"""How often typicality summed over an image picks the image's own label among all.

    python -m benchmarks.label_accuracy --root ROOT --images 200 --draws 20

Takes the finetuned model, prompts and images of a mined root. Each image is scored under every
label; comparing the sums is the diffusion classifier (Li et al. 2023), and chance is one over the
number of labels. A model too weak for a dataset shows here first.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from diffmining_core.evaluation.labels import label_accuracy
from diffmining_core.models.files import ModelSource
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.ledger import read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality
from tasks.index import DATASET_STAGE, dataset_shards, good_images
from tasks.models import ModelReference, choose_device, loaded


def main() -> None:
    """Score a random sample of the first shard and print accuracy beside chance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()

    root = open_root(arguments.root)
    finetuned = read_manifests(root, "finetune")[-1]
    stored = finetuned.parameters
    options = TypicalityOptions(
        PromptTemplate.from_options(stored),
        size=int(str(stored["size"])),
        draws=arguments.draws,
        t_range=(0.1, 0.7),
        seed=int(str(stored["seed"])),
    )
    model = ModelReference(ModelSource(""), str(finetuned.facts["digest"]), finetuned.key)
    pipeline = loaded(root.url, model, choose_device("auto"))
    dataset = max(read_manifests(root, DATASET_STAGE), key=lambda state: state.created)
    shard = dataset_shards(root.url, dataset.key)[0]
    images = good_images(root, shard)[: arguments.images]
    labels = sorted(str(label) for label in finetuned.facts["labels"])

    under_labels = [replace(image, label=label) for image in images for label in labels]
    with tqdm(total=arguments.draws * (len(images) + len(under_labels)), unit=" forwards") as bar:
        maps, _ = shard_typicality(pipeline, under_labels, options, 32, bar.update)
    sums = np.array([maps[place].mean.sum() for place in range(len(under_labels))])
    sums = sums.reshape(len(images), len(labels))
    measured = label_accuracy(sums, np.array([labels.index(image.label) for image in images]))
    print(
        f"{len(images)} images, {len(labels)} labels, {arguments.draws} draws: the own label is "
        f"picked in {measured['accuracy']:.1%} ± {measured['standard_error']:.1%}, "
        f"chance {measured['chance']:.1%}"
    )


if __name__ == "__main__":
    main()
