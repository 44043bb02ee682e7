"""What mining, or measuring alone, would take: told before a long run, which it does not begin.

Images are counted from the dataset's listing and from what lies at the root; the model runs for a
few seconds on none of them. Nothing is written.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.images.shards import check_labels
from diffmining_core.models.files import Geometry, ModelFiles, find_model
from diffmining_core.patches.refinement import SHARE
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import Root
from diffmining_core.typicality.rounds import rounds
from flows.answers import Told
from flows.checks import check_sources, unclaimed_root
from flows.finetune import image_geometry, size_text, time_text
from flows.parameters import MineParameters, TypicalityParameters
from tasks.expected import ExpectedShard, expected_shards
from tasks.features import features_unit
from tasks.finetune import finetuned_before, finetuned_model, trained_on
from tasks.models import ModelReference, base_model, choose_device, loaded
from tasks.patches import patches_unit
from tasks.refinement import measured_before
from tasks.selection import label_digests, selection_unit
from tasks.typicality import wanted_unit

BYTES_PER_POSITION = 6.6
"""Of a map, mean and squares, as they lie at the root (docs/scale.md)."""
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
    """What one run would find and make, told from its parameters and its root."""

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
        return expected_shards(self.root, p.dataset, p.recipe, split, p.shard_rows)

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

    def finetuning(self) -> tuple[Work, Any] | None:
        """Training, and its cost as `finetune --dry-run` has it; None where none is wanted."""
        if not self.settings.finetune_steps:
            return None
        from diffmining_core.finetuning.estimate import estimate, finetune_forwards

        p = self.parameters
        files: ModelFiles = find_model(p.start_source())
        options = FinetuneOptions.from_options(p.finetune_options(self.geometry.size))
        running = FinetuneRunning(**p.finetune_running())
        images = sum(shard.images for shard in self.trained)
        configs = {name: files.config(name) for name in ("unet", "vae", "text_encoder")}
        device = choose_device(p.device).name
        is_there = self.model is not None
        cost = None if is_there else estimate(configs, images, options, running, device)
        labels = len({label for shard in self.trained for label in shard.labels})
        work = Work(
            "finetune",
            1,
            int(is_there),
            0 if is_there else finetune_forwards(options, running, images, labels),
            False,
            0 if cost is None else cost.memory["weights"],
        )
        return work, cost

    def typicality(self) -> Work:
        """The maps of every shard; with rounds, those of the first."""
        changes: Mapping[str, Any] = {}
        if isinstance(self.parameters, MineParameters) and self.parameters.adaptive:
            changes = self.parameters.first_round(self.geometry.size, self.geometry.cell)
        return self._measuring("typicality", self.dataset, self.model, changes)

    def before(self) -> Work | None:
        """The maps of the side before finetuning; None where none is wanted."""
        if not isinstance(self.parameters, MineParameters) or self.model == self.base:
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
        chosen = compared if count < 0 else compared[:count]
        work = self._measuring("typicality before finetuning", chosen, self.base, {})
        sizes = {one.images + one.pairs for one in compared}
        unsure = not in_order and len(chosen) < len(compared) and len(sizes) > 1
        return replace(work, at_most=work.at_most or unsure)

    def _measuring(
        self,
        name: str,
        shards: Sequence[ExpectedShard],
        model: ModelReference | None,
        changes: Mapping[str, Any],
    ) -> Work:
        options = {**self.parameters.typicality_options(self.geometry.size), **changes}
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

    def rounds(self) -> Work | None:
        """The rounds after the first of `--adaptive`, each of a share of a label's images."""
        if not isinstance(self.parameters, MineParameters) or not self.parameters.adaptive:
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
        assert isinstance(self.parameters, MineParameters)
        size, cell = self.geometry.size, self.geometry.cell
        options = {
            **self.parameters.typicality_options(size),
            **self.parameters.first_round(size, cell),
        }
        first = ["" for _ in known]
        return all(measured_before(self.root.url, known, self.model, options, first))

    def features(self) -> Work | None:
        """DIFT of the highest patches: each of a label's images once."""
        p = self.parameters
        if not isinstance(p, MineParameters):
            return None
        from diffmining_core.features.dift import NOISES

        labels, there = self.labels, self._embedded()
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

    def _width(self) -> int:
        """Numbers of a feature: the channels of the second up block."""
        channels = find_model(self.parameters.start_source()).config("unet")["block_out_channels"]
        return int(list(reversed(channels))[1])

    def _embedded(self) -> set[str]:
        """The labels whose features are there, told where the selection is."""
        p, known = self.parameters, [one.shard for one in self.dataset if one.shard]
        assert isinstance(p, MineParameters)
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


def dry_run(parameters: TypicalityParameters, cost_per_hour: float | None = None) -> list[Told]:
    """What the run would take; InputError for what would be refused, as at its beginning."""
    if isinstance(parameters, MineParameters) and parameters.mode != "resume":
        raise InputError(
            f"a dry run tells what is missing, as --mode resume would make it, but the mode is "
            f"{parameters.mode}; leave it out."
        )
    if cost_per_hour is not None and cost_per_hour < 0:
        raise InputError(f"--cost-per-hour should be 0 or more, but is {cost_per_hour}.")
    expected = Expectation(parameters)
    if isinstance(parameters, MineParameters):
        check_labels(expected.labels, parameters.min_images)
    training = expected.finetuning()
    stages = [
        training[0] if training else None,
        expected.typicality(),
        expected.before(),
        expected.rounds(),
        expected.features(),
    ]
    works = [work for work in stages if work]
    rate = measured_rate(expected) if any(work.forwards for work in works) else None
    seconds = {
        work.name: training[1].seconds
        if training and training[1] and work is training[0]
        else (work.forwards / rate if rate else 0.0)
        for work in works
    }
    return told(expected, works, seconds, rate, training[1] if training else None, cost_per_hour)


def measured_rate(expected: Expectation) -> float:
    """UNet forwards a second of the model that is there, as it is before finetuning."""
    from diffmining_core.typicality.speed import forwards_per_second

    device = choose_device(expected.parameters.device, expected.parameters.precision)
    pipeline = loaded(expected.parameters.root, expected.start, device)
    return forwards_per_second(pipeline, expected.geometry.size)


def told(
    expected: Expectation,
    works: Sequence[Work],
    seconds: Mapping[str, float],
    rate: float | None,
    training: Any,
    cost_per_hour: float | None,
) -> list[Told]:
    """The lines of the table, first what the dataset has, last what it comes to."""
    images = sum(one.images for one in expected.dataset)
    indexed = sum(one.images for one in expected.dataset if one.shard)
    labels, shards = len(expected.labels), len(expected.dataset)
    known = f", {indexed:,} of them indexed already" if indexed else ""
    lines = [
        Told("images", images, f"{images:,}{known}"),
        Told("labels", labels, f"{labels:,}"),
        Told("shards", shards, f"{shards:,}"),
    ]
    for work in works:
        lines.append(Told(work.name, _numbers(work, seconds[work.name]), _words(work, seconds)))
    forwards, at_most = sum(w.forwards for w in works), any(w.at_most for w in works)
    total = sum(seconds.values())
    stored = sum(work.bytes for work in works)
    most = " at most" if at_most else ""
    lines.append(Told("forwards", forwards, f"{forwards:,}{most}"))
    if rate:
        device = choose_device(expected.parameters.device, expected.parameters.precision).name
        said = f"{rate:,.3g} forwards a second, measured on this {device}"
        lines.append(Told("rate", rate, said))
    lines.append(Told("time", total, f"about {time_text(total)} of the UNet{most}"))
    lines.append(Told("disk", stored, f"about {size_text(stored)} at the root, without the page"))
    if training:
        memory = sum(training.memory.values())
        lines.append(Told("memory", memory, f"about {size_text(memory)} to finetune (estimated)"))
    if cost_per_hour is not None:
        cost = cost_per_hour * total / 3600
        lines.append(Told("cost", cost, f"about {cost:,.2f}{most}, at {cost_per_hour:g} an hour"))
    return lines


def _numbers(work: Work, seconds: float) -> dict[str, Any]:
    return {
        "units": work.units,
        "there": work.there,
        "forwards": work.forwards,
        "at_most": work.at_most,
        "seconds": seconds,
        "bytes": round(work.bytes),
    }


def _words(work: Work, seconds: Mapping[str, float]) -> str:
    if not work.forwards:
        return "nothing: it is there"
    there = f" ({work.there:,} of {work.units:,} units are there)" if work.there else ""
    most = " at most" if work.at_most else ""
    took, stored = time_text(seconds[work.name]), size_text(work.bytes)
    return f"{work.forwards:,} forwards{most}, about {took} and {stored}{there}"
