from __future__ import annotations

import pyarrow as pa
import pytest

from diffmining_core.evaluation.correspondence import PURE, correspondence, kind_at
from diffmining_core.evaluation.planted import Box
from diffmining_core.images.street_scenes.dataset import TRUTH_SCHEMA

TRUTH = pa.Table.from_pylist(
    [
        dict(zip(TRUTH_SCHEMA.names, row, strict=True))
        for row in (
            ("rome/a.png", "rome", "roof", "rome", 0, 0, 20, 30),
            ("rome/a.png", "rome", "pole", "oslo", 40, 70, 90, 76),
            ("rome/a.png", "rome", "tree", None, 60, 0, 90, 30),
            ("rome/b.png", "rome", "sign", "rome", 0, 0, 20, 30),
        )
    ],
    TRUTH_SCHEMA,
)
ROOF, POLE, TREE, NOTHING = (0, 3), (50, 61), (63, 3), (100, 100)
"""Places of patches of 24 px."""
URIS = {"a": "/data/rome/a.png", "b": "/data/rome/b.png"}


def clusters(*members: list[tuple[int, int]]) -> pa.Table:
    rows = [
        {"cluster": cluster, "image_id": "a", "y": y, "x": x, "size": 24}
        for cluster, places in enumerate(members)
        for y, x in places
    ]
    return pa.Table.from_pylist(rows)


def test_a_cluster_holds_one_kind_from_the_stated_share_on() -> None:
    assert PURE == 0.8
    found = correspondence(
        clusters([ROOF] * 4 + [POLE], [ROOF] * 3 + [TREE], [NOTHING] * 2), URIS, TRUTH
    )
    assert found["pure"] == 0.8
    assert found["one_kind"] == pytest.approx(1 / 3)
    assert [one["kind"] for one in found["clusters"]] == ["roof", "roof", None]
    assert [one["purity"] for one in found["clusters"]] == [0.8, 0.75, 0]
    assert [one["members"] for one in found["clusters"]] == [5, 4, 2]


def test_members_on_nothing_count_against_a_cluster() -> None:
    found = correspondence(clusters([ROOF] * 3 + [NOTHING]), URIS, TRUTH)
    assert found["clusters"][0]["purity"] == 0.75
    assert found["one_kind"] == 0


def test_what_is_common_to_all_labels_is_a_kind_too() -> None:
    found = correspondence(clusters([TREE] * 3), URIS, TRUTH)
    assert found["clusters"][0]["kind"] == "tree"
    assert found["one_kind"] == 1


def test_the_shares_of_all_kinds_the_commonest_first() -> None:
    found = correspondence(clusters([ROOF, POLE], [NOTHING, ROOF]), URIS, TRUTH)
    assert found["kinds"] == {"roof": 0.5, "pole": 0.25}
    assert list(found["kinds"]) == ["roof", "pole"]
    nothing = correspondence(clusters([NOTHING]), URIS, TRUTH)
    assert (nothing["kinds"], nothing["by_chance"], nothing["one_kind"]) == ({}, 0, 0)


def test_chance_is_what_random_clusters_of_the_same_sizes_come_to() -> None:
    pairs = correspondence(clusters([ROOF, ROOF], [POLE, POLE]), URIS, TRUTH)
    assert pairs["one_kind"] == 1
    assert pairs["by_chance"] == pytest.approx(1 / 3, abs=0.1)  # the first's other half is one of 3
    alone = correspondence(clusters([ROOF], [NOTHING]), URIS, TRUTH)
    assert alone["by_chance"] == alone["one_kind"] == 0.5  # of one member each, nothing is dealt
    again = correspondence(clusters([ROOF, ROOF], [POLE, POLE]), URIS, TRUTH)
    assert again == pairs
    large = correspondence(clusters([ROOF] * 20, [POLE] * 20), URIS, TRUTH)
    assert large["by_chance"] == 0


def test_a_patch_on_two_kinds_is_of_that_it_has_more_of() -> None:
    roof = Box("roof", "rome", 0, 0, 20, 20)
    window = Box("window", None, 20, 0, 40, 20)
    assert kind_at([roof, window], 8, 0, 20) == "roof"  # 12 rows of it, 8 of the window
    assert kind_at([roof, window], 12, 0, 20) == "window"
    assert kind_at([window, roof], 10, 0, 20) == "roof"  # half of each: the first by name
    assert kind_at([roof], 11, 0, 20) is None  # less than half
    assert kind_at([], 0, 0, 20) is None
