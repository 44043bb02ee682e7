"""What a dataset would be cut into, told from its listing: no image is opened, nothing written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from diffmining_core.images import shards
from diffmining_core.images.shards import FoundImage, KeptShard
from diffmining_core.images.sources import open_source
from diffmining_core.recipes import load_recipe, plain_recipe
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Manifest, published, read_manifests
from diffmining_core.store.roots import Root
from tasks.index import dataset_shards, dataset_unit, index_stage, known_shards


@dataclass(frozen=True)
class ExpectedShard:
    """A dataset shard as it will be, good images by label; shard: None until it is indexed."""

    images: int
    labels: Mapping[str, int]
    shard: Shard | None = None

    @property
    def pairs(self) -> int:
        """Images under each of their labels."""
        return sum(self.labels.values())


def expected_shards(
    root: Root | None,
    dataset: str,
    recipe: str | None,
    split: str,
    shard_rows: int,
    allow: Sequence[str] = (),
) -> list[ExpectedShard]:
    """The shards of a split of the dataset; root: where it may be indexed already.

    As many images as can be used as far as the listing tells: indexing may set some aside. They are
    in the order of the dataset where all are indexed.
    """
    chosen = load_recipe(recipe) if recipe else plain_recipe()
    stage = index_stage(chosen, split)
    source = open_source(dataset, chosen.layout(split), allow)
    there = published(root, stage) if root else set()
    if root and there:
        state = dataset_unit(source.digest, there, stage)
        if state.key in published(root, state.stage):
            of_state = dataset_shards(root.url, state.key, state.stage)
            return [ExpectedShard(s.images, dict(s.labels), s) for s in of_state]
    plan = source.plan(known_shards(root, stage) if root else [], shard_rows)
    kept = list(_kept(root, stage, plan.keep)) if root else []
    return [*kept, *(_listed(new.images) for new in plan.new)]


def _kept(root: Root, stage: str, keep: list[KeptShard]) -> Iterator[ExpectedShard]:
    """Shards that still hold; of one that has lost rows only the most is known."""
    manifests = read_manifests(root, stage, [kept.key for kept in keep])
    for kept, manifest in zip(keep, manifests, strict=True):
        is_whole = not kept.dropped and not kept.corrected and manifest.algo == shards.ALGO
        labels = manifest.facts["labels"]
        shard = _reference(manifest, stage) if is_whole else None
        yield ExpectedShard(manifest.counts["images"], labels, shard)


def _reference(manifest: Manifest, stage: str) -> Shard:
    facts, counts = manifest.facts, manifest.counts
    return Shard(
        key=manifest.key,
        indexed_id=facts["content_id"],
        content_id=facts["content_id"],
        dropped=(),
        images=counts["images"],
        labels=tuple(sorted(facts["labels"].items())),
        set_aside=counts["set_aside"],
        declared=counts["declared"],
        details_id=facts["details_id"],
        stage=stage,
    )


def _listed(found: list[FoundImage]) -> ExpectedShard:
    good = [image for image in found if image.fault is None]
    return ExpectedShard(
        len({image.uri for image in good}), dict(Counter(image.label for image in good))
    )
