"""From the sequences of the shards to the most co-typical of all.

A *sequence* is one place of an image and of its translations: one element as it looks under each
label. `translation.cotypicality` picks them, image by image.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from diffmining_core.patches.selection import PENDING_ROWS

ALGO = "sequences-1"

SEQUENCE_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),  # of the source image
        ("label", pa.string()),  # of the source image; of several the first
        ("rank", pa.int32()),  # 0-based in its image
        ("y", pa.int32()),  # top left corner, pixels of the model-size image, under all labels
        ("x", pa.int32()),
        ("size", pa.int32()),  # side of the patch, pixels
        ("cotypicality", pa.float32()),  # median of `typicality`
        ("labels", pa.list_(pa.string())),
        ("typicality", pa.list_(pa.float32())),  # under each of `labels`, of that label's image
        ("own", pa.list_(pa.string())),  # those of `labels` that the source image itself has
    ]
)


@dataclass(frozen=True)
class TopSequences:
    """The `count` sequences of the highest co-typicality among those seen so far, over all labels.

    A reduction with a zero (`empty`) and an addition (`add`): shards may come in any order, and
    twice. Ties go by image, label, y and x; a place found twice counts once. Held are at most
    `count` rows and PENDING_ROWS more, and the shard that is added.
    """

    count: int
    kept: pa.Table
    pending: tuple[pa.Table, ...] = ()

    @classmethod
    def empty(cls, count: int) -> TopSequences:
        """The selection of nothing."""
        return cls(count, SEQUENCE_SCHEMA.empty_table())

    def add(self, sequences: pa.Table) -> TopSequences:
        """With the sequences (SEQUENCE_SCHEMA) of one shard as well."""
        pending = (*self.pending, sequences) if sequences.num_rows else self.pending
        grown = replace(self, pending=pending)
        few = sum(table.num_rows for table in pending) < max(PENDING_ROWS, self.kept.num_rows)
        return grown if few else replace(grown, kept=grown.table(), pending=())

    def table(self) -> pa.Table:
        """The selection (SEQUENCE_SCHEMA), the highest first."""
        candidates = pa.concat_tables([self.kept, *self.pending])
        place = ["image_id", "label", "y", "x"]
        keys = [("cotypicality", "descending"), *((name, "ascending") for name in place)]
        order = np.asarray(pc.sort_indices(candidates, sort_keys=keys))
        columns = [candidates[name].to_pylist() for name in place]
        first: dict[tuple[object, ...], int] = {}  # row of each place, the highest first
        for row in order.tolist():
            first.setdefault(tuple(column[row] for column in columns), row)
            if len(first) == self.count:
                break
        return candidates.take(pa.array(first.values(), pa.int64())).combine_chunks()
