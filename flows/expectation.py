"""What a run would find and make, stage by stage: counted from its parameters and its root.

Images are those of the dataset's listing and of what lies at the root. No image is opened, no model
is run, nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.images.shards import check_labels
from diffmining_core.models.files import Geometry, ModelFiles, find_model
from diffmining_core.patches.refinement import SHARE
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import Root
from diffmining_core.typicality.rounds import rounds
from flows.checks import check_sources, check_steps, unclaimed_root
from flows.finetune import image_geometry
from flows.parameters import (
    LocalizeParameters,
    MineParameters,
    TranslateParameters,
    TypicalityParameters,
)
from tasks.evaluation import find_truth
from tasks.expected import ExpectedShard, expected_shards
from tasks.features import features_unit
from tasks.finetune import finetuned_before, finetuned_model, trained_on
from tasks.models import ModelReference, base_model, choose_device
from tasks.patches import patches_unit
from tasks.refinement import measured_before
from tasks.selection import label_digests, selection_unit
from tasks.typicality import wanted_unit

if TYPE_CHECKING:  # it imports torch
    from diffmining_core.finetuning.estimate import Estimate

FINETUNE = "finetune"
BYTES_PER_POSITION = 6.6
"""Of a map, mean and squares, as they lie at the root (docs/scale.md)."""
BYTES_PER_PIXEL = 3
"""Of a redrawn image, at most: it lies at the root as PNG."""
ASPECT = 4 / 3
"""Of images of which the listing tells no size."""
FEATURE_BYTES = 4
HIGHEST_ROW_BYTES = 100
"""Of a patch's row beside its feature."""


@dataclass(frozen=True)
class Work:
    """What a stage would make: of `units`, those `there` are not made again.

    forwards: through the UNet; at_most: whether they may prove fewer. bytes: at the root.
    """

    name: str
    units: int
    there: int
    forwards: int
    at_most: bool
    bytes: float


class Expectation:
    """What measuring typicality would find and make; what other runs make comes on top."""

    parameters: TypicalityParameters

    def __init__(self, parameters: TypicalityParameters) -> None:
        self.parameters = parameters
        check_sources(parameters)
        self.root: Root | None = unclaimed_root(parameters)
        self.settings = parameters.settings()
        self.dataset = self._shards(MINED)
        self.trains_on_others = bool(
            self.settings.finetune_steps and self.settings.recipe.trains_on_others
        )
        self.trained = self._shards(TRAIN) if self.trains_on_others else self.dataset
        self.geometry: Geometry = image_geometry(parameters)
        self.start: ModelReference = base_model(parameters.start_source())
        self.base: ModelReference = base_model(parameters.model_source())
        self.model = self._model()
        self.maps_there = published(self.root, "typicality") if self.root else set()

    def _shards(self, split: str) -> list[ExpectedShard]:
        p = self.parameters
        return expected_shards(self.root, p.dataset, p.recipe, split, p.shard_rows, p.allow)

    def works(self) -> list[Work | None]:
        """Every stage that runs the UNet, in their order; None for those that are not wanted."""
        return [self.finetuning(), self.typicality()]

    @property
    def images(self) -> int:
        """How many there are to look at."""
        return sum(one.images for one in self.dataset)

    @property
    def labels(self) -> Counter[str]:
        """Images by label."""
        counts: Counter[str] = Counter()
        for shard in self.dataset:
            counts.update(shard.labels)
        return counts

    def _model(self) -> ModelReference | None:
        """The model to mine with; None where it is yet to be trained."""
        if not self.settings.finetune_steps:
            return self.start
        known = [one.shard for one in self.trained if one.shard]
        if self.root is None or not known:
            return None
        options = self.parameters.finetune_options(self.geometry.size)
        kept = finetuned_before(self.root.url, known, self.start, options)
        if kept is None:
            return None
        current = {shard.content_id for shard in known}
        is_current = len(known) == len(self.trained) and set(kept.inputs[1:]) == current
        if self.parameters.retrain and not is_current:
            return None
        self.kept = kept
        return finetuned_model(self.root.url, self.start, kept.key)

    @cached_property
    def training(self) -> Estimate | None:
        """What training costs, as `finetune --dry-run` has it; None where none is wanted or due."""
        if not self.settings.finetune_steps or self.model:
            return None
        from diffmining_core.finetuning.estimate import estimate

        p = self.parameters
        files: ModelFiles = find_model(p.start_source())
        configs = {name: files.config(name) for name in ("unet", "vae", "text_encoder")}
        images = sum(shard.images for shard in self.trained)
        device = choose_device(p.device).name
        return estimate(configs, images, *self._finetune_options(), device)

    def _finetune_options(self) -> tuple[FinetuneOptions, FinetuneRunning]:
        p = self.parameters
        options = FinetuneOptions.from_options(p.finetune_options(self.geometry.size))
        return options, FinetuneRunning(**p.finetune_running())

    def finetuning(self) -> Work | None:
        """Training; None where none is wanted."""
        if not self.settings.finetune_steps:
            return None
        if self.training is None:
            return Work(FINETUNE, 1, 1, 0, False, 0)
        from diffmining_core.finetuning.estimate import finetune_forwards

        images = sum(shard.images for shard in self.trained)
        labels = len({label for shard in self.trained for label in shard.labels})
        forwards = finetune_forwards(*self._finetune_options(), images, labels)
        return Work(FINETUNE, 1, 0, forwards, False, self.training.memory["weights"])

    def typicality(self) -> Work:
        """The maps of every shard."""
        options = self.parameters.typicality_options(self.geometry.size)
        return self._measuring("typicality", self.dataset, self.model, options)

    def _measuring(
        self,
        name: str,
        shards: Sequence[ExpectedShard],
        model: ModelReference | None,
        options: dict[str, Any],
    ) -> Work:
        missing = [
            one
            for one in shards
            if model is None
            or one.shard is None
            or wanted_unit(one.shard, model, options, self.maps_there).key not in self.maps_there
        ]
        forwards = options["draws"] * sum(one.images + one.pairs for one in missing)
        stored = self._map_bytes(sum(one.pairs for one in missing))
        return Work(name, len(shards), len(shards) - len(missing), forwards, False, stored)

    def _map_bytes(self, pairs: int) -> float:
        side = self.geometry.size // self.geometry.cell
        return pairs * side * side * ASPECT * BYTES_PER_POSITION

    def _width(self) -> int:
        """Numbers of a feature: the channels of the second up block."""
        channels = find_model(self.parameters.start_source()).config("unet")["block_out_channels"]
        return int(list(reversed(channels))[1])


class ExpectedMining(Expectation):
    """What mining would."""

    parameters: MineParameters

    def __init__(self, parameters: MineParameters) -> None:
        if parameters.mode != "resume":
            raise InputError(
                f"a dry run tells what is missing, as --mode resume would make it, but the mode is "
                f"{parameters.mode}; leave it out."
            )
        super().__init__(parameters)
        check_labels(self.labels, parameters.min_images)

    def works(self) -> list[Work | None]:
        """Those of measuring, both sides, further rounds, and features."""
        return [*super().works(), self.before(), self.rounds(), self.features()]

    def typicality(self) -> Work:
        """The maps of every shard; with rounds, those of the first."""
        if not self.parameters.adaptive:
            return super().typicality()
        return self._measuring("typicality", self.dataset, self.model, self._first_options())

    def _first_options(self) -> dict[str, Any]:
        size, cell = self.geometry.size, self.geometry.cell
        return {
            **self.parameters.typicality_options(size),
            **self.parameters.first_round(size, cell),
        }

    def before(self) -> Work | None:
        """The maps of the side before finetuning; None where none is wanted."""
        if self.model == self.base:
            return None
        count = self.parameters.before_shards
        compared = self.dataset
        if self.model is not None and not self.trains_on_others:
            known = [one.shard for one in self.dataset if one.shard]
            seen = {shard.key for shard in trained_on(self.kept, known)}
            compared = [one for one in self.dataset if one.shard and one.shard.key in seen]
        if count == 0 or not compared:
            return None
        in_order = all(one.shard for one in compared)
        if count > 0 and not in_order:  # the order comes with the images' content
            compared = sorted(compared, key=lambda one: -(one.images + one.pairs))
        options = self.parameters.typicality_options(self.geometry.size)
        chosen = compared if count < 0 else compared[:count]
        work = self._measuring("typicality before finetuning", chosen, self.base, options)
        sizes = {one.images + one.pairs for one in compared}
        unsure = not in_order and len(chosen) < len(compared) and len(sizes) > 1
        return replace(work, at_most=work.at_most or unsure)

    def rounds(self) -> Work | None:
        """The rounds after the first of `--adaptive`, each of a share of a label's images."""
        if not self.parameters.adaptive:
            return None
        following = rounds(self.parameters.draws)
        if self._is_refined():
            return Work("further rounds", len(following) - 1, len(following) - 1, 0, False, 0)
        chosen = [
            sum(round(SHARE**place * count) for count in self.labels.values())
            for place in range(1, len(following))
        ]
        # Who gets the draws of a round is chosen in it or in a later one. Two forwards a draw: an
        # image of several labels may have its null prediction once for each.
        most = sum(
            2 * (draws - earlier) * min(sum(self.labels.values()), sum(chosen[place:]))
            for place, (earlier, draws) in enumerate(pairwise(following))
        )
        stored = self._map_bytes(sum(chosen))
        return Work("further rounds", len(following) - 1, 0, most, True, stored)

    def _is_refined(self) -> bool:
        """Whether earlier runs have gone through all rounds, with every shard of today."""
        known = [one.shard for one in self.dataset if one.shard]
        if self.root is None or self.model is None or len(known) < len(self.dataset):
            return False
        first = ["" for _ in known]
        return all(measured_before(self.root.url, known, self.model, self._first_options(), first))

    def features(self) -> Work:
        """DIFT of the highest patches: each of a label's images once."""
        from diffmining_core.features.dift import NOISES

        p, labels, there = self.parameters, self.labels, self._embedded()
        missing = {label: count for label, count in labels.items() if label not in there}
        images = sum(min(count, p.top) for count in missing.values())
        patches = sum(min(count * p.patches_per_image, p.top) for count in missing.values())
        # A top that holds every image's patches has every image.
        unsure = any(count * p.patches_per_image > p.top for count in missing.values())
        return Work(
            "features",
            len(labels),
            len(there),
            NOISES * images,
            unsure,
            patches * (FEATURE_BYTES * self._width() + HIGHEST_ROW_BYTES),
        )

    def _embedded(self) -> set[str]:
        """The labels whose features are there, told where the selection is."""
        p, known = self.parameters, [one.shard for one in self.dataset if one.shard]
        if self.root is None or self.model is None or len(known) < len(self.dataset) or p.adaptive:
            return set()
        size, cell = self.geometry.size, self.geometry.cell
        options = p.typicality_options(size)
        maps = [wanted_unit(one, self.model, options, self.maps_there).key for one in known]
        patches = [patches_unit(key, p.patch_options(size, cell)).key for key in maps]
        selection = selection_unit(known, patches, p.top, p.seed).key
        if selection not in published(self.root, "selection"):
            return set()
        there = published(self.root, "features")
        wanted = p.features_options(size)
        return {
            label
            for label, digest in label_digests(self.root.url, selection).items()
            if features_unit(label, digest, self.model, wanted).key in there
        }


class ExpectedTranslation(Expectation):
    """What redrawing would."""

    parameters: TranslateParameters

    def __init__(self, parameters: TranslateParameters) -> None:
        check_steps(parameters.steps, parameters.inversion_stride)
        super().__init__(parameters)
        self.targets = parameters.labels(sorted(self.labels))
        most = parameters.per_label or max(self.labels.values())
        self.redrawn = sum(min(self.labels[label], most) for label in self.targets)
        several = any(one.pairs > one.images for one in self.dataset)
        there = self.root is not None and published(self.root, "translation")
        self.at_most = several or bool(there)
        """What is redrawn of a label is drawn by the images' content, which is yet to be read."""

    def works(self) -> list[Work | None]:
        """Redrawing, the maps of all, and the features of their sequences."""
        return [self.finetuning(), self.redrawing(), self.typicality(), self.features()]

    def redrawing(self) -> Work:
        """Inversion and one picture under each other label."""
        from diffmining_core.translation.shard import TranslationOptions, forwards_of

        size, others = self.geometry.size, len(self.targets) - 1
        options = TranslationOptions.from_options(self.parameters.translation_options(size))
        forwards = self.redrawn * forwards_of(options, others)
        stored = self.redrawn * others * size * size * ASPECT * BYTES_PER_PIXEL
        return Work("translation", self.redrawn, 0, forwards, self.at_most, stored)

    def typicality(self) -> Work:
        """The maps of the images and of what they are redrawn as."""
        pairs = self.redrawn * len(self.targets)
        forwards = 2 * self.parameters.draws * pairs
        return Work("typicality", pairs, 0, forwards, True, self._map_bytes(pairs))

    def features(self) -> Work:
        """DIFT of every sequence under every label, each image once."""
        from diffmining_core.features.dift import NOISES

        p, labels = self.parameters, len(self.targets)
        sequences = min(self.redrawn * p.patches_per_image, p.top)
        forwards = NOISES * labels * min(self.redrawn, sequences)
        stored = sequences * labels * (FEATURE_BYTES * self._width() + HIGHEST_ROW_BYTES)
        return Work("joint features", labels, 0, forwards, True, stored)


class ExpectedLocalization(Expectation):
    """What localisation would: how many images have a label that is located is yet to be read."""

    parameters: LocalizeParameters

    def __init__(self, parameters: LocalizeParameters) -> None:
        find_truth(parameters.dataset, parameters.masks)
        super().__init__(parameters)

    def works(self) -> list[Work | None]:
        """The maps of both sides."""
        options = self.parameters.typicality_options(self.geometry.size)
        sides = {"typicality": self.model}
        if self.model != self.base:
            sides["typicality before finetuning"] = self.base
        measured = [
            replace(self._measuring(name, self.dataset, model, options), at_most=True)
            for name, model in sides.items()
        ]
        return [self.finetuning(), *measured]


def expectation(parameters: TypicalityParameters) -> Expectation:
    """What the run with these parameters would find and make; InputError for what it refuses."""
    match parameters:
        case MineParameters():
            return ExpectedMining(parameters)
        case TranslateParameters():
            return ExpectedTranslation(parameters)
        case LocalizeParameters():
            return ExpectedLocalization(parameters)
        case _:
            return Expectation(parameters)
