"""From the patch tables of the shards to the top patches of each label.

A reduction with a zero (`TopPatches.empty`), an addition of one shard's patches (`add`) and one of
two partial results (`merge`): shards may come in any order, in any grouping, and twice, and the
selection is the same. What is held never exceeds a small multiple of labels × kinds × count rows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.scoring import HIGHEST, KINDS, LOWEST, PATCH_SCHEMA, RANDOM

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ALGO = "selection-1"

SELECTION_SCHEMA = pa.schema(
    # uri: where the image is; label_rank: 0-based in label and kind
    [*PATCH_SCHEMA, pa.field("uri", pa.string()), pa.field("label_rank", pa.int32())]
)
RANKED_SCHEMA = SELECTION_SCHEMA.append(pa.field("shard", pa.string()))  # where the row is from
_CANDIDATE_SCHEMA = RANKED_SCHEMA.remove(RANKED_SCHEMA.names.index("label_rank")).append(
    pa.field("order", pa.float64())  # the lowest come first within a label and kind
)

Image = tuple[str, str]  # image_id, label
Group = tuple[str, str]  # label, kind

PENDING_ROWS = (
    131_072  # sorted together, so that a shard of few rows does not sort all that is kept
)


@dataclass(frozen=True)
class TopPatches:
    """The best `count` patches of each label and kind among those seen so far.

    Highest come by descending, lowest by ascending typicality, random ones by a hash of (seed,
    image, y, x); ties by image, y, x. A patch found twice (an image that lies in the dataset twice
    under one label) counts once, at the better of its typicalities.
    """

    count: int
    seed: int
    kept: pa.Table
    pending: tuple[pa.Table, ...] = ()

    @classmethod
    def empty(cls, count: int, seed: int) -> TopPatches:
        """The selection of nothing, the zero of the reduction."""
        return cls(count, seed, _CANDIDATE_SCHEMA.empty_table())

    @classmethod
    def of(cls, ranked: pa.Table, count: int, seed: int) -> TopPatches:
        """What rows of an earlier selection (RANKED_SCHEMA) add up to."""
        candidates = ranked.append_column("order", pa.array(_order(ranked, seed)))
        return cls.empty(count, seed)._with(candidates.select(_CANDIDATE_SCHEMA.names))

    def add(self, patches: pa.Table, uris: Mapping[Image, str], shard: str) -> TopPatches:
        """With the patches of one shard (PATCH_SCHEMA) as well.

        uris gives the address of each image that counts; patches of others are left out.
        """
        images = zip(patches["image_id"].to_pylist(), patches["label"].to_pylist(), strict=True)
        uri = pa.array([uris.get(image) for image in images], pa.string())
        counted = patches.append_column("uri", uri).filter(pc.is_valid(uri))
        order = pa.array(_order(counted, self.seed))
        from_shard = pa.array([shard] * counted.num_rows, pa.string())
        candidates = counted.append_column("shard", from_shard).append_column("order", order)
        return self._with(candidates.cast(_CANDIDATE_SCHEMA))

    def merge(self, other: TopPatches) -> TopPatches:
        """The selection over what either has seen; both must have one count and one seed."""
        if (self.count, self.seed) != (other.count, other.seed):
            raise ValueError(
                f"selections of {self.count} with seed {self.seed} and of {other.count} with seed "
                f"{other.seed} do not add up"
            )
        return self._with(other.kept, *other.pending)

    def table(self) -> pa.Table:
        """The selection (SELECTION_SCHEMA), sorted by label, kind and label_rank."""
        return self.ranked().select(SELECTION_SCHEMA.names)

    def ranked(self) -> pa.Table:
        """The selection with the shard that each row is from (RANKED_SCHEMA), sorted like it."""
        candidates = pa.concat_tables([self.kept, *self.pending])
        rows, label_rank = _best(candidates, self.count)
        ranked = candidates.take(rows).append_column("label_rank", pa.array(label_rank))
        return ranked.select(RANKED_SCHEMA.names).cast(RANKED_SCHEMA).combine_chunks()

    def settled(self) -> TopPatches:
        """The same without what cannot be selected any more, as small as it gets."""
        if not self.pending:
            return self
        candidates = pa.concat_tables([self.kept, *self.pending])
        rows, _ = _best(candidates, self.count)
        return replace(self, kept=candidates.take(rows).combine_chunks(), pending=())

    def _with(self, *tables: pa.Table) -> TopPatches:
        pending = (*self.pending, *(table for table in tables if table.num_rows))
        grown = replace(self, pending=pending)
        if sum(table.num_rows for table in pending) < max(PENDING_ROWS, self.kept.num_rows):
            return grown
        return grown.settled()


def in_groups(patches: pa.Table, groups: Collection[Group]) -> pa.ChunkedArray:
    """Whether each patch is of one of the (label, kind)."""
    names = pc.binary_join_element_wise(patches["kind"], patches["label"], "/")
    return pc.is_in(names, pa.array([f"{kind}/{label}" for label, kind in groups], pa.string()))


def _order(patches: pa.Table, seed: int) -> npt.NDArray[np.float64]:
    """What each row is ordered by within its label and kind, ascending."""
    kind = patches["kind"].to_numpy()
    typicality = patches["typicality"].to_numpy().astype(np.float64)
    order: npt.NDArray[np.float64] = np.select(
        [kind == HIGHEST, kind == LOWEST], [-typicality, typicality]
    )
    random = np.flatnonzero(kind == RANDOM)
    where = patches.select(["image_id", "y", "x"]).take(random).to_pydict()
    order[random] = [_shuffle_key(seed, *at) for at in zip(*where.values(), strict=True)]
    return order


def _shuffle_key(seed: int, image_id: str, y: int, x: int) -> float:
    """A number in [0, 1) that is random in, and fixed by, its arguments."""
    digest = hashlib.sha256(f"{seed}:{image_id}:{y}:{x}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def _codes(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Integers in the order of the strings, equal for equal ones."""
    return np.asarray(pc.rank(column, tiebreaker="dense"))


def _best(candidates: pa.Table, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int32]]:
    """The rows to keep, sorted by label, kind and order, and the rank of each in label and kind."""
    kind = np.asarray(pc.index_in(candidates["kind"], pa.array(KINDS)))
    group = _codes(candidates["label"]).astype(np.int64) * len(KINDS) + kind
    image, uri, shard = (_codes(candidates[name]) for name in ("image_id", "uri", "shard"))
    y, x, order, typicality, rank_in_image = (
        candidates[name].to_numpy() for name in ("y", "x", "order", "typicality", "rank")
    )
    same_patch_together = np.lexsort(
        (rank_in_image, shard, uri, typicality, order, x, y, image, group)
    )
    identity = np.stack([group, image, y, x])[:, same_patch_together]
    rows = same_patch_together[_starts(identity)]

    rows = rows[np.lexsort((order[rows], group[rows]))]  # stable: ties stay by image, y, x
    starts = np.flatnonzero(_starts(group[rows][None]))
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff([*starts, len(rows)]))
    best = rank < count
    return rows[best], rank[best].astype(np.int32)


def _starts(keys: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True where the column of keys [k, n] differs from the one before it."""
    differs = np.ones(keys.shape[1], bool)
    differs[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    return differs
