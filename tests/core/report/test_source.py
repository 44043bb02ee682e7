from __future__ import annotations

import dataclasses
import re

import pyarrow.compute as pc
from drawn_site import HOSTILE, drawn_source

from diffmining_core.report.source import (
    STRIP_REACH,
    best_rows,
    label_clusters,
    label_patches,
    label_slugs,
    shown_pairs,
)


def test_plain_labels_keep_their_name() -> None:
    assert label_slugs(["t-shirt", "1920", "bus"]) == {k: k for k in ("t-shirt", "1920", "bus")}


def test_slugs_are_safe_and_distinct_even_where_case_is_ignored() -> None:
    labels = [*HOSTILE, "..", ".", "", "bus", "Bus", "BUS", "bus ", "nul", "a/b", "a-b", "a\\b"]
    slugs = label_slugs(labels)
    assert len({slug.lower() for slug in slugs.values()}) == len(labels)
    for slug in slugs.values():
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", slug)
        assert len(slug) <= 60
    assert slugs["nul"] != "nul"


def test_a_label_named_like_anothers_slug_is_no_clash() -> None:
    taken = label_slugs(["Bus"])["Bus"]
    slugs = label_slugs(["Bus", taken])
    assert slugs[taken] == taken
    assert slugs["Bus"] != taken


def test_label_patches_come_by_rank() -> None:
    source = drawn_source()
    shuffled = source.selection.take(list(reversed(range(source.selection.num_rows))))
    patches = label_patches(shuffled, "tower", "highest")
    assert len(patches) == 8
    assert [p.typicality for p in patches] == sorted((p.typicality for p in patches), reverse=True)


def test_clusters_come_by_rank_with_nearest_members_first() -> None:
    source = drawn_source(images_per_label=20)
    clusters = label_clusters(source, "barn")
    assert [(c.rank, c.members, c.is_small) for c in clusters] == [(0, 18, False), (1, 2, True)]
    assert len(clusters[0].patches) == 12
    members = [
        row for row in source.clusters.to_pylist() if row["label"] == "barn" and row["cluster"] == 0
    ]
    distances = {row["image_id"]: row["distance"] for row in members}
    shown = [distances[patch.image_id] for patch in clusters[0].patches]
    assert shown == sorted(distances.values())[:12]


def test_a_label_without_clusters_shows_its_highest_patches() -> None:
    source = drawn_source()
    none = source.cluster_summary.slice(0, 0)
    bare = dataclasses.replace(source, cluster_summary=none)
    assert best_rows(bare, "barn", 3, 5) == [
        tuple(label_patches(source.selection, "barn", "highest")[:5]),
        tuple(label_patches(source.selection, "barn", "highest")[5:]),
    ]


def test_small_clusters_come_last_at_a_glance() -> None:
    source = drawn_source(images_per_label=8)
    flipped = source.cluster_summary.to_pylist()
    for row in flipped:
        row["members"] = 2 if row["cluster"] == 0 else 6
    table = type(source.cluster_summary).from_pylist(flipped)
    changed = dataclasses.replace(source, cluster_summary=table)
    assert [len(row) for row in best_rows(changed, "barn", 3, 5)] == [2, 5]


def test_maps_are_wanted_of_what_a_page_may_show_only() -> None:
    source = drawn_source(images_per_label=80, sizes=(40, 40))
    pairs = shown_pairs(source.selection, source.before, source.clusters, None)
    of_barn = {image_id for image_id, label in pairs if label == "barn"}
    ranks = source.selection.filter(pc.equal(source.selection["label"], "barn"))
    strips = set(ranks.filter(pc.less(ranks["label_rank"], STRIP_REACH))["image_id"].to_pylist())
    assert strips < of_barn
    central = {
        patch.image_id for cluster in label_clusters(source, "barn") for patch in cluster.patches
    }
    assert central <= of_barn == strips | central
    assert source.ranking is not None
    ends = shown_pairs(source.selection, None, source.clusters, source.ranking) - pairs
    assert ends <= {
        (image_id, label)
        for label, images in source.ranking.of_label.items()
        for _, image_id, _ in (*images.highest, *images.lowest)
    }
