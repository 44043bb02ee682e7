"""Typicality beside other ways to find what is typical: on the same images, patches and truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State

from diffmining_core.baselines import doersch_reference as reference
from diffmining_core.baselines.doersch import MATCHES, NEGATIVES, RANKING_MATCHES, ROUNDS
from diffmining_core.errors import InputError
from diffmining_core.report.escaping import markdown_text
from diffmining_core.report.shown_addresses import without_paths
from diffmining_core.report.study_page import Table, markdown
from diffmining_core.results.references import Shard
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.embed import embed
from flows.fan_out import Work, planned_there, run_missing
from flows.mine import cluster
from flows.parameters import CLASSIFIER, CLIP, DOERSCH, RANDOM, REFERENCE, CompareParameters
from flows.run_ledger import RunLedger
from flows.selection import choose, pick_patches
from flows.study import prepared as studies
from flows.study.prepared import Prepared, prepare, study_facts
from flows.typicality import measure, shard_name
from tasks import doersch, doersch_reference, features, patches, saliency, selection
from tasks.clip_ranking import (
    STAGE as CLIP_STAGE,
)
from tasks.clip_ranking import (
    clip,
    clip_features,
    clip_features_unit,
    clip_reference,
    clip_unit,
)
from tasks.clusters import STAGE as CLUSTERS_STAGE
from tasks.comparison import Compared, Method, Part, UnitName, compared_numbers, comparison
from tasks.doersch_results import CELLS_STAGE, DETECTORS_STAGE, MATCHES_STAGE
from tasks.finetune import STAGE as FINETUNE_STAGE
from tasks.models import choose_device
from tasks.random_choice import random_patches, random_unit
from tasks.report import publish_page
from tasks.selection import label_digests
from tasks.typicality import STAGE as TYPICALITY_STAGE
from tasks.units import Done

PAGE = "compare.html"
TYPICALITY = "typicality"
TITLES = {DOERSCH: "Doersch", CLIP: "CLIP", CLASSIFIER: "classifier", RANDOM: "random"}
"""What the page calls the baselines."""


@flow(name="compare", flow_run_name="compare {parameters.title}", log_prints=True)
def compare(parameters: CompareParameters) -> dict[str, Any]:
    """Mine a dataset by typicality and by each baseline, and measure what they find and take.

    Typicality is that of `mine`: at a root that was mined with the same options nothing of it is
    computed again. Returns the numbers of the page `compare.html` at the root.
    """
    check(parameters)
    root, run = parameters.root, RunLedger()
    common = _Common(parameters, prepare(parameters, run), run)
    ways: dict[str, Callable[[], Method]] = {
        DOERSCH: lambda: _doersch(common),
        CLIP: lambda: _clip(common),
        CLASSIFIER: lambda: _classifier(common),
        RANDOM: lambda: _random(common),
    }
    methods = [_typicality(common), *(ways[name]() for name in parameters.compared())]
    with run.stage("comparison"):
        prepared = common.prepared
        compared = Compared(
            title=f"What finds what is typical in {parameters.dataset_name}",
            truth=prepared.truth,
            dataset=tuple(common.dataset),
            methods=tuple(methods),
            size=common.size,
            cell=common.cell,
            patch_size=common.patch_options["size"],
            facts=comparison_facts(common, methods),
        )
        plan_stage(open_root(root), compared.unit.stage, [compared.unit.key])
        (done,) = run.add([comparison(root, compared)])
        page = publish_page(root, done.key, compared.unit.stage, PAGE)
    summary = {**compared_numbers(root, done.key), **run.summary(), "page": page}
    said = markdown_text(f"{parameters.title}: page {page}", 300)
    table = Table(**summary["table"])
    create_markdown_artifact(markdown(table, page), key="compare", description=said)
    get_run_logger().info("The page of the comparison is %s", page)
    return summary


def check(parameters: CompareParameters) -> None:
    """Refuse what cannot be mined or compared; else claim the root."""
    if CLIP in parameters.compared():
        if parameters.clip is None:
            raise InputError(
                "the baseline clip needs a CLIP model, but none is given; give --clip, such as "
                "openai/clip-vit-large-patch14-336, or leave clip out of --baselines."
            )
        clip_reference(parameters.clip)
    studies.check(parameters)


@dataclass(frozen=True)
class _Common:
    """What all ways of mining share."""

    parameters: CompareParameters
    prepared: Prepared
    run: RunLedger

    @property
    def root(self) -> str:
        """Of the results."""
        return self.parameters.root

    @property
    def dataset(self) -> list[Shard]:
        """The shards that are mined."""
        return self.prepared.dataset

    @property
    def size(self) -> int:
        """Pixels of the images' shorter side."""
        return self.prepared.geometry.size

    @property
    def cell(self) -> int:
        """Pixels of a place of a map."""
        return self.prepared.geometry.cell

    @property
    def patch_options(self) -> dict[str, Any]:
        """What decides the patches of a map."""
        return self.parameters.patch_options(self.size, self.cell)

    def device(self) -> str:
        """Asked for only where there is work: it loads torch."""
        return choose_device(self.parameters.device).name

    def parts(self) -> list[int]:
        """How many of the first shards are mined to see what grows: halves of halves, and all."""
        halves = range(self.parameters.halvings, -1, -1)
        return sorted({max(1, round(len(self.dataset) / 2**half)) for half in halves})

    def found(
        self, patches_keys: Sequence[str], units: Callable[[int], list[UnitName]]
    ) -> list[Part]:
        """What was found on each part, from the patches of every shard and what n shards took."""
        parts = self.parts()
        sides = [(self.dataset[:n], list(patches_keys[:n])) for n in parts]
        with self.run.stage("selection"):
            keys = choose(self.parameters, sides, self.run)
        return [
            _part(n, key, patches_keys[:n], units(n)) for n, key in zip(parts, keys, strict=True)
        ]

    def make(self, work: Iterable[Work[Any]], task: Callable[[Any], State[Done]]) -> list[str]:
        """The keys of units of one stage; what is missing of them is made, one after the other."""
        wanted = list(work)
        keys = [one.unit.key for one in wanted]
        there = planned_there(self.root, wanted[0].unit.stage, keys)
        self.run.add(run_missing([one for one in wanted if one.unit.key not in there], task))
        return keys

    def of_shards(
        self, work: Callable[[Shard], Work[Shard]], task: Callable[[Shard], State[Done]]
    ) -> list[str]:
        """As `make`, a unit for each shard."""
        return self.make((work(shard) for shard in self.dataset), task)


def _part(shards: int, key: str, patches_keys: Sequence[str], units: list[UnitName]) -> Part:
    own = [(patches.STAGE, one) for one in patches_keys] + [(selection.STAGE, key)]
    return Part(shards, key, (*units, *own))


def _clustered(common: _Common, embedded: dict[str, str]) -> dict[str, Any]:
    """The clusters of each label, and what they took, from the keys of its features."""
    with common.run.stage("clusters"):
        clustered = cluster(common.parameters, embedded, common.run)
    units = [(features.STAGE, key) for key in embedded.values()]
    units += [(CLUSTERS_STAGE, key) for key in clustered.values()]
    return {"clusters": tuple(clustered.values()), "clustering": tuple(units)}


def _embedded(common: _Common, chosen: str) -> dict[str, str]:
    """The keys of the diffusion model's features of each label's patches."""
    digests = label_digests(common.root, chosen)
    model = common.prepared.model
    with common.run.stage("features"):
        return embed(common.parameters, chosen, digests, model, common.size, common.run)


def _typicality(common: _Common) -> Method:
    model = common.prepared.model
    sides = {"typicality": (common.dataset, model)}
    (keys,) = measure(common.parameters, sides, common.size, common.run)
    with common.run.stage("patches"):
        picked = pick_patches(common.parameters, keys, common.patch_options, common.run)
    parts = common.found(
        [picked[key] for key in keys], lambda n: [(TYPICALITY_STAGE, key) for key in keys[:n]]
    )
    return Method(
        TYPICALITY,
        tuple(parts),
        training=((FINETUNE_STAGE, model.finetuned),) if model.finetuned else (),
        maps=(TYPICALITY_STAGE, tuple(keys)),
        **_clustered(common, _embedded(common, parts[-1].selection)),
    )


def _from_maps(common: _Common, stage: str, keys: Sequence[str]) -> list[Part]:
    """What the maps of a baseline lead to, as those of typicality do."""
    options, run = common.patch_options, common.run
    with run.stage("patches"):
        picked = pick_patches(common.parameters, list(keys), options, run, stage)
    return common.found([picked[key] for key in keys], lambda n: [(stage, key) for key in keys[:n]])


def _clip(common: _Common) -> Method:
    parameters, root = common.parameters, common.root
    assert parameters.clip is not None  # see check
    model = clip_reference(parameters.clip)
    prompts = parameters.settings().prompts.as_options()
    options = {**prompts, "size": common.size, "cell": common.cell}
    with common.run.stage("clip"):
        keys = common.of_shards(
            lambda shard: Work(clip_unit(shard, model, options), shard_name(shard), shard),
            lambda shard: clip(root, shard, model, options, common.device(), return_state=True),
        )
    parts = _from_maps(common, CLIP_STAGE, keys)
    chosen = parts[-1].selection
    digests = label_digests(root, chosen)
    with common.run.stage("features"):
        embedded = common.make(
            (
                Work(clip_features_unit(label, digest, model, options), label, (label, digest))
                for label, digest in digests.items()
            ),
            lambda item: clip_features(
                root, *item, chosen, model, options, common.device(), return_state=True
            ),
        )
    return Method(
        TITLES[CLIP],
        tuple(parts),
        maps=(CLIP_STAGE, tuple(keys)),
        **_clustered(common, dict(zip(digests, embedded, strict=True))),
    )


def _classifier(common: _Common) -> Method:
    root, run, parameters = common.root, common.run, common.parameters
    options = parameters.classifier_options(common.size, common.cell)
    unit = saliency.classifier_unit(common.dataset, options)
    with run.stage("classifier"):
        (classifier,) = common.make(
            [Work(unit, "classifier", common.dataset)],
            lambda dataset: saliency.classifier(
                root, dataset, options, common.device(), return_state=True
            ),
        )
    with run.stage("saliency"):
        keys = common.of_shards(
            lambda shard: Work(saliency.saliency_unit(shard, classifier), shard_name(shard), shard),
            lambda shard: saliency.saliency(
                root, shard, classifier, common.device(), return_state=True
            ),
        )
    parts = _from_maps(common, saliency.STAGE, keys)
    chosen = parts[-1].selection
    digests = label_digests(root, chosen)
    with run.stage("features"):
        embedded = common.make(
            (
                Work(
                    saliency.saliency_features_unit(label, digest, classifier),
                    label,
                    (label, digest),
                )
                for label, digest in digests.items()
            ),
            lambda item: saliency.saliency_features(
                root, *item, chosen, classifier, common.device(), return_state=True
            ),
        )
    return Method(
        TITLES[CLASSIFIER],
        tuple(parts),
        training=((saliency.CLASSIFIER_STAGE, classifier),),
        maps=(saliency.STAGE, tuple(keys)),
        **_clustered(common, dict(zip(digests, embedded, strict=True))),
    )


def _random(common: _Common) -> Method:
    root = common.root
    options = {
        "size": common.size,
        "patch_size": common.patch_options["size"],
        "per_image": common.parameters.patches_per_image,
        "seed": common.parameters.seed,
    }
    with common.run.stage("random patches"):
        keys = common.of_shards(
            lambda shard: Work(random_unit(shard, options), shard_name(shard), shard),
            lambda shard: random_patches(root, shard, options, return_state=True),
        )
    parts = common.found(keys, lambda n: [])
    embedded = _embedded(common, parts[-1].selection)
    return Method(TITLES[RANDOM], tuple(parts), **_clustered(common, embedded))


def _doersch(common: _Common) -> Method:
    root = common.root
    options = {"size": common.size, "patch_size": common.patch_options["size"]}
    with common.run.stage("Doersch's cells"):
        cells = common.of_shards(
            lambda shard: Work(doersch.cells_unit(shard, options), shard_name(shard), shard),
            lambda shard: doersch.cells(root, shard, options, return_state=True),
        )
    parts, elements = [], ""
    for n in common.parts():
        with common.run.stage("Doersch et al."):
            part, elements = _doersch_part(common, common.dataset[:n], cells[:n])
        parts.append(part)
    return Method(TITLES[DOERSCH], tuple(parts), elements=elements)


def _doersch_part(common: _Common, dataset: list[Shard], cells: list[str]) -> tuple[Part, str]:
    """What is found on some shards, and the key of its elements."""
    root, parameters = common.root, common.parameters
    made = _Detectors(common, cells)
    seeds, seed = parameters.doersch_seeds, parameters.seed
    made.add(
        Work(doersch.seeds_unit(cells, seeds, seed), "seeds", None),
        lambda _: doersch.choose_seeds(root, dataset, cells, seeds, seed, return_state=True),
    )
    as_released = parameters.doersch_training == REFERENCE
    count = _reference_training(made) if as_released else _fast_training(made)
    last = (made.keys[-1], made.matches(count), count)
    (elements,) = common.make(
        [Work(doersch.elements_unit(*last), "elements", last)],
        lambda given: doersch.rank_elements(root, cells, *given, return_state=True),
    )
    size, per_image = common.patch_options["size"], parameters.patches_per_image
    keys = common.make(
        (
            Work(doersch.element_patches_unit(one, elements, size, per_image), one[:8], one)
            for one in cells
        ),
        lambda one: doersch.element_patches(
            root, one, elements, size, per_image, return_state=True
        ),
    )
    (chosen,) = choose(parameters, [(dataset, keys)], common.run)
    units = [
        *((CELLS_STAGE, key) for key in cells),
        *((DETECTORS_STAGE, key) for key in made.keys),
        *((MATCHES_STAGE, key) for key in made.fired),
        (doersch.ELEMENTS_STAGE, elements),
    ]
    return _part(len(dataset), chosen, keys, units), elements


class _Detectors:
    """The detectors made on some shards, one unit after the other, and where they fire."""

    def __init__(self, common: _Common, cells: list[str]) -> None:
        self.common, self.cells = common, cells
        self.keys: list[str] = []
        self.fired: list[str] = []

    def add(self, work: Work[Any], task: Callable[[Any], State[Done]]) -> None:
        """Make the next detectors."""
        self.keys += self.common.make([work], task)

    def matches(self, count: int) -> list[str]:
        """The keys of the best windows of the last detectors, shard by shard."""
        root, detectors, device = self.common.root, self.keys[-1], self.common.device
        return self._found(
            (Work(doersch.matches_unit(one, detectors, count), one[:8], one) for one in self.cells),
            lambda one: doersch.matches(root, one, detectors, count, device(), return_state=True),
        )

    def positives(self, round_: int) -> list[str]:
        """The keys of the last detectors' positives in a round of reference training."""
        common = self.common
        given = (self.keys[-1], round_, common.parameters.seed)
        return self._found(
            (
                Work(doersch_reference.positives_unit(one, *given), one[:8], one)
                for one in self.cells
            ),
            lambda one: doersch_reference.positives(
                common.root, one, *given, common.device(), return_state=True
            ),
        )

    def _found(self, work: Iterable[Work[str]], task: Callable[[str], State[Done]]) -> list[str]:
        keys = self.common.make(work, task)
        self.fired += keys
        return keys


def _fast_training(made: _Detectors) -> int:
    """Train in rounds, each on the matches of the one before; returns how many matches rank."""
    root, parameters = made.common.root, made.common.parameters
    for _ in range(ROUNDS):
        before = (
            made.keys[0],
            made.keys[-1],
            made.matches(MATCHES),
            parameters.doersch_kept,
            parameters.seed,
        )
        made.add(
            Work(doersch.trained_unit(*before), "detectors", before),
            lambda given: doersch.train_detectors(root, made.cells, *given, return_state=True),
        )
    return MATCHES


def _reference_training(made: _Detectors) -> int:
    """Train in rounds as the released code does; returns how many matches rank."""
    root, parameters = made.common.root, made.common.parameters
    seeds = (made.keys[-1], made.matches(MATCHES), parameters.doersch_kept)
    made.add(
        Work(doersch_reference.kept_unit(*seeds), "best seeds", seeds),
        lambda given: doersch_reference.keep_seeds(root, made.cells, *given, return_state=True),
    )
    for round_ in range(ROUNDS):
        before = (made.keys[-1], made.positives(round_), round_, parameters.seed)
        made.add(
            Work(doersch_reference.round_unit(*before), "detectors", before),
            lambda given: doersch_reference.train_round(
                root, made.cells, *given, return_state=True
            ),
        )
    return RANKING_MATCHES


def comparison_facts(common: _Common, methods: Sequence[Method]) -> dict[str, Any]:
    """How each way was made, for the page's readers."""
    parameters = common.parameters
    facts: dict[str, Any] = study_facts(parameters, common.prepared)
    for method in methods:
        if method.name == TITLES[DOERSCH]:
            facts[method.name] = {
                "seeds per label": parameters.doersch_seeds,
                "detectors per label": parameters.doersch_kept,
                "training": parameters.doersch_training,
                "rounds of SVMs": ROUNDS,
                "random negatives": (
                    reference.NEGATIVES if parameters.doersch_training == REFERENCE else NEGATIVES
                ),
            }
        elif method.name == TITLES[CLIP]:
            facts[method.name] = {"model": without_paths(parameters.clip)}
        elif method.name == TITLES[CLASSIFIER]:
            right = saliency.trained_accuracy(common.root, method.training[0][1])
            facts[method.name] = {
                "steps": parameters.classifier_steps,
                "right on what it saw last": f"{right:.0%}",
            }
    return facts
