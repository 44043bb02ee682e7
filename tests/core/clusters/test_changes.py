from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pytest

from diffmining_core.clusters.changes import ClusterChange, cluster_changes
from diffmining_core.clusters.kmeans import CLUSTER_SCHEMA

SIZE = 16


def clusters(*groups: Iterable[int], label: str = "barn", shift: int = 0) -> pa.Table:
    """A label's clusters, the highest first: which images gave each a patch."""
    rows = [
        {"label": label, "image_id": f"image {image}", "y": 8 + shift, "x": 8, "size": SIZE}
        | {"cluster": rank, "kind": "highest", "label_rank": 0, "typicality": 0.0}
        | {"uri": "", "distance": 0.0, "rank": 0}
        for rank, images in enumerate(groups)
        for image in images
    ]
    return pa.Table.from_pylist(rows, schema=CLUSTER_SCHEMA)


def told(before: pa.Table, after: pa.Table) -> list[tuple[str, int | None, int | None]]:
    return [(change.kind, change.before, change.after) for change in cluster_changes(before, after)]


NOTHING = clusters()
A, B, C = range(10), range(10, 20), range(20, 30)


def test_nothing_changed() -> None:
    assert told(clusters(A, B), clusters(A, B)) == [("stayed", 0, 0), ("stayed", 1, 1)]
    assert told(NOTHING, NOTHING) == []


def test_clusters_that_are_numbered_anew_are_the_same() -> None:
    assert told(clusters(A, B, C), clusters(C, B, A)) == [
        ("moved", 2, 0),
        ("stayed", 1, 1),
        ("moved", 0, 2),
    ]


def test_one_that_makes_room_did_not_move() -> None:
    assert told(clusters(A, B), clusters(C, A, B)) == [
        ("entered", None, 0),
        ("stayed", 0, 1),
        ("stayed", 1, 2),
    ]
    assert told(clusters(A, B, C), clusters(B, C)) == [
        ("stayed", 1, 0),
        ("stayed", 2, 1),
        ("left", 0, None),
    ]


def test_of_a_cluster_that_split_the_larger_part_is_the_same() -> None:
    assert told(clusters(range(30)), clusters(range(9), range(9, 30))) == [
        ("entered", None, 0),
        ("stayed", 0, 1),
    ]


def test_of_clusters_that_merged_the_one_that_gave_most_is_the_same() -> None:
    assert told(clusters(range(9), range(9, 30)), clusters(range(30))) == [
        ("stayed", 1, 0),
        ("left", 0, None),
    ]


def test_a_label_that_came_and_one_that_has_gone() -> None:
    changes = cluster_changes(clusters(A, B), clusters(A, label="tower"))
    assert changes == [
        ClusterChange("barn", "left", 0, None),
        ClusterChange("barn", "left", 1, None),
        ClusterChange("tower", "entered", None, 0),
    ]


def test_the_same_patches_of_another_label_are_others() -> None:
    after = pa.concat_tables([clusters(B), clusters(A, label="tower")])
    before = pa.concat_tables([clusters(A), clusters(B, label="tower")])
    assert [change.kind for change in cluster_changes(before, after)] == ["entered", "left"] * 2


def test_patches_pushed_out_by_better_ones_do_not_count() -> None:
    """Two thirds of each are new, and what both states have lies together as it did."""
    grown = clusters([*range(4), *range(100, 108)], [*range(10, 14), *range(110, 118)])
    assert told(clusters(A, B), grown) == [("stayed", 0, 0), ("stayed", 1, 1)]


def test_the_last_few_of_a_cluster_prove_nothing() -> None:
    nearly_all_new = clusters([0, 1, *range(100, 110)], B)
    assert told(clusters(A, B), nearly_all_new) == [
        ("entered", None, 0),
        ("stayed", 1, 1),
        ("left", 0, None),
    ]
    assert told(clusters([0]), clusters([0])) == [("stayed", 0, 0)]


@pytest.mark.parametrize(("stay", "kind"), [(5, "stayed"), (4, "entered")])
def test_half_of_the_patches_is_enough(stay: int, kind: str) -> None:
    """Of 10 and 10 patches that both states have."""
    before = clusters(A, [*B, *C])
    after = clusters([*A[:stay], *B[stay:]], [*A[stay:], *B[:stay], *C])
    assert told(before, after)[0][0] == kind


def test_a_patch_is_the_same_some_pixels_away() -> None:
    assert told(clusters(A), clusters(A, shift=SIZE // 2 - 1)) == [("stayed", 0, 0)]
    assert told(clusters(A), clusters(A, shift=SIZE // 2))[0][0] == "entered"


def test_the_order_of_rows_is_no_matter() -> None:
    rng = np.random.default_rng(5)
    before = clusters(A, B, range(20, 33), [40])
    after = clusters([*A[:7], 41], C, [*B, *A[7:]])
    expected = cluster_changes(before, after)
    assert {change.kind for change in expected} == {"stayed", "moved", "left"}
    for _ in range(5):
        shuffled = [table.take(rng.permutation(table.num_rows)) for table in (before, after)]
        assert cluster_changes(*shuffled) == expected


def test_it_is_the_same_seen_from_either_end() -> None:
    """Told backwards, what entered has left, and what stayed or moved still did."""
    before, after = clusters(A, B, range(50, 56)), clusters([*B, 41], range(60, 70), A)
    turned = {"entered": "left", "left": "entered"}
    forwards = {(turned.get(kind, kind), a, b) for kind, b, a in told(before, after)}
    assert forwards == set(told(after, before))
