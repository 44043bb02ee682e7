"""A plain classifier's saliency: where a small convolutional network sees its label.

The network is trained on the images and labels that are mined. It ends in the mean of the class
scores of all places, so that the score of a label at a place is exactly its part of the decision
(class activation mapping, Zhou et al., 2016). In: model-size images. Out: maps of it, a number for
each cell of typicality's maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import nn

from diffmining_core.features.dift import patch_features
from diffmining_core.finetuning.images import LabelledImages, random_crop
from diffmining_core.images.pixels import IMAGE_MULTIPLE
from diffmining_core.models.seeds import seeded

WIDTHS = (32, 64, 96, 128)
"""Channels after each halving of the image; further ones keep the last."""
GROUPS = 8
WEIGHT_DECAY = 1e-2

Pixels = npt.NDArray[np.uint8]
Map = npt.NDArray[np.float32]


class Classifier(nn.Module):
    """Convolutions that halve the image until a place is a cell, one more, and the class scores."""

    def __init__(self, labels: int, cell: int) -> None:
        super().__init__()
        halvings = cell.bit_length() - 1
        widths = [3, *(WIDTHS[min(at, len(WIDTHS) - 1)] for at in range(halvings))]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GroupNorm(GROUPS, after), nn.ReLU()]
        last = widths[-1] if halvings else WIDTHS[0]
        layers += [nn.Conv2d(widths[-1], last, 3, 1, 1), nn.GroupNorm(GROUPS, last), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.scores = nn.Conv2d(last, labels, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Class scores [n, labels] of images [n, 3, h, w]: the mean over all places."""
        logits: torch.Tensor = self.scores(self.features(pixel_values)).mean(dim=(2, 3))
        return logits


@dataclass(frozen=True)
class TrainingOptions:
    """What decides a classifier, beside the images.

    size, cell: pixels of the images' shorter side and of a place of a map.
    """

    steps: int
    batch_size: int
    learning_rate: float
    size: int
    cell: int
    seed: int

    @property
    def side(self) -> int:
        """Of the square that it sees of an image in training."""
        return self.size - self.size % IMAGE_MULTIPLE


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, its labels in the order of the scores, and how often it was right.

    accuracy: on the images of the last tenth of the steps, as it then was.
    """

    model: Classifier
    labels: tuple[str, ...]
    accuracy: float


def train_classifier(
    images: LabelledImages,
    labels: Sequence[str],
    options: TrainingOptions,
    device: str,
    on_step: Callable[[float], None] = lambda loss: None,
) -> TrainedClassifier:
    """Train on random squares of random images, one of several labels under a random one.

    What a step sees depends on the seed and the step alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(seeded(options.seed, "classifier").get_state())
        model = Classifier(len(labels), options.cell).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), options.learning_rate, weight_decay=WEIGHT_DECAY
    )
    index = {label: place for place, label in enumerate(labels)}
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    right: list[float] = []
    for step in range(options.steps):
        pixels, targets = _batch(images, index, options, step)
        logits = model(pixels.to(device))
        loss = F.cross_entropy(logits, targets.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        right.append(float((logits.argmax(1).cpu() == targets).float().mean()))
        on_step(float(loss.detach()))
    last = right[-max(1, options.steps // 10) :]
    return TrainedClassifier(model.eval(), tuple(labels), sum(last) / len(last))


def _batch(
    images: LabelledImages, index: dict[str, int], options: TrainingOptions, step: int
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(options.seed, "classifier", step)
    chosen = torch.randint(len(images), (options.batch_size,), generator=generator).tolist()
    places = torch.rand(options.batch_size, 3, generator=generator).tolist()
    squares, targets = [], []
    for at, place in zip(chosen, places, strict=True):
        image = images.load(at)
        if image is None:  # it proves unusable
            continue
        squares.append(random_crop(image.pixels, options.side, place))
        targets.append(index[image.labels[int(place[2] * len(image.labels))]])
    return pixel_values(np.stack(squares)), torch.tensor(targets)


def pixel_values(pixels: Pixels) -> torch.Tensor:
    """Images uint8 [n, h, w, 3] as float32 [n, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.inference_mode()
def feature_map(model: Classifier, pixels: Pixels) -> torch.Tensor:
    """What the class scores are made from, float32 [channels, H / cell, W / cell]."""
    device = next(model.parameters()).device
    features: torch.Tensor = model.features(pixel_values(pixels[None]).to(device))[0]
    return features


@torch.inference_mode()
def saliency_map(model: Classifier, features: torch.Tensor, label: int) -> Map:
    """The score of a label at each place less the mean over all labels, float32 [h, w].

    Its mean is the classifier's score of the label for the whole image, less that of all.
    """
    scores = model.scores(features[None])[0]
    saliency: Map = (scores[label] - scores.mean(dim=0)).cpu().numpy()
    return saliency


def saliency_features(
    features: torch.Tensor, patches: Sequence[tuple[int, int]], size: int, image_hw: tuple[int, int]
) -> npt.NDArray[np.float32]:
    """The mean feature under each patch [len(patches), channels], of unit length."""
    pooled: npt.NDArray[np.float32] = (
        patch_features(features, patches, size, image_hw).cpu().numpy()
    )
    return pooled


def classifier_bytes(trained: TrainedClassifier) -> bytes:
    """The weights as safetensors."""
    return save({name: t.contiguous().cpu() for name, t in trained.model.state_dict().items()})


def classifier_from(weights: bytes, labels: int, cell: int, device: str) -> Classifier:
    """The classifier that `classifier_bytes` wrote."""
    model = Classifier(labels, cell)
    model.load_state_dict(load(weights))
    return model.requires_grad_(False).eval().to(device)
