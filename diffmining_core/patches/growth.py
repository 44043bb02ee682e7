"""From an earlier selection to that of a changed dataset, reading no more than is needed.

A label's top patches stand as long as none of them is lost. So new shards are merged into them, and
only a label and kind that has lost one of its own is chosen anew from all shards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.selection import Group, Image, in_groups


@dataclass(frozen=True)
class Part:
    """One shard's part in a selection: the unit of its patches, and the rows that do not count."""

    patches_key: str
    dropped: tuple[int, ...]


@dataclass(frozen=True)
class Update:
    """What to add to what.

    kept: the earlier rows (RANKED_SCHEMA) that stand. added: shards to be added with all their
    patches. groups: what is to be added of every shard, because `kept` has nothing of it.
    """

    kept: pa.Table
    added: frozenset[str]
    groups: frozenset[Group]


def plan_update(
    ranked: pa.Table,
    before: Mapping[str, Part],
    now: Mapping[str, Part],
    live_images: Callable[[str], Collection[Image]],
) -> Update:
    """How the selection `ranked` over the parts `before` becomes that over the parts `now`.

    Parts are given by shard; live_images tells the images of a shard that count now, and is asked
    only for shards that count in another part than before.
    """
    changed = {shard for shard, part in before.items() if now.get(shard) != part}
    added = frozenset(shard for shard, part in now.items() if before.get(shard) != part)
    still_there = {
        shard: live_images(shard)
        for shard in changed & now.keys()
        if before[shard].patches_key == now[shard].patches_key
    }
    from_changed = pc.is_in(ranked["shard"], pa.array(sorted(changed), pa.string()))
    groups = set()
    for row in ranked.filter(from_changed).to_pylist():
        if (row["image_id"], row["label"]) not in still_there.get(row["shard"], ()):
            groups.add((row["label"], row["kind"]))
    # What a changed shard has left comes back when it is added.
    gone = pc.or_(from_changed, in_groups(ranked, groups))
    return Update(ranked.filter(pc.invert(gone)), added, frozenset(groups))
