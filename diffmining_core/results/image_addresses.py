"""Where the images of a run are read; its pages say only where they are in the dataset."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from diffmining_core.images.shards import good, images_of
from diffmining_core.results.references import SHARD_TABLE, Shard
from diffmining_core.store.ledger import finished, read_table
from diffmining_core.store.roots import Root

READERS = 16
"""Shards that are read at once: storage elsewhere answers slowly."""


def image_addresses(root: Root, shards: Iterable[Shard]) -> dict[str, str]:
    """The address of each good image of some shards, by its id."""

    def of_shard(shard: Shard) -> dict[str, str]:
        manifest = finished(root, shard.stage, shard.key)
        table = read_table(root, manifest, SHARD_TABLE)
        images = images_of(good(table), root.url_of(manifest.attempt))
        return {image.image_id: image.uri for image in images}

    addresses: dict[str, str] = {}
    with ThreadPoolExecutor(READERS) as pool:
        for found in pool.map(of_shard, shards):
            addresses |= found
    return addresses
