from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffmining_core.report.ranking import IMAGE_TABLE_SCHEMA, KEPT, rank_images


def table(label: str, typicality: list[float], first: int = 0) -> pa.Table:
    numbers = range(first, first + len(typicality))
    return pa.table(
        {
            "image_id": [f"{number:02d}" for number in numbers],
            "label": [label] * len(typicality),
            "uri": [f"/photos/{number}.png" for number in numbers],
            "typicality": pa.array(typicality, pa.float32()),
        }
    )


def test_either_end_is_kept_and_all_values_whatever_the_order_of_the_shards(
    tmp_path: Path,
) -> None:
    values = np.random.default_rng(0).permutation(20).astype(float).tolist()
    shards = [table("a", values[:8]), table("b", [5.0]), table("a", values[8:], first=8)]
    one = rank_images(iter(shards), tmp_path / "one.parquet").of_label
    other = rank_images(iter(shards[::-1]), tmp_path / "other.parquet").of_label
    assert [value for value, _, _ in one["a"].highest] == [19, 18, 17, 16, 15, 14][:KEPT]
    assert [value for value, _, _ in one["a"].lowest] == [0, 1, 2, 3, 4, 5][:KEPT]
    assert (one["a"].highest, one["a"].lowest) == (other["a"].highest, other["a"].lowest)
    assert sorted(one["a"].typicality) == list(range(20))
    assert one["b"].highest == one["b"].lowest == [(5.0, "00", "/photos/0.png")]


def test_of_equal_images_the_lowest_id_comes_first(tmp_path: Path) -> None:
    ranked = rank_images([table("a", [1.0] * 9)], tmp_path / "i.parquet").of_label["a"]
    ids = [f"{number:02d}" for number in range(KEPT)]
    assert [image_id for _, image_id, _ in ranked.highest] == ids
    assert [image_id for _, image_id, _ in ranked.lowest] == ids


def test_the_table_of_all_images_is_beside(tmp_path: Path) -> None:
    ranking = rank_images([table("a", [1.0, 2.0]), table("b", [3.0])], tmp_path / "i.parquet")
    stored = pq.read_table(ranking.table)
    assert stored.schema.equals(IMAGE_TABLE_SCHEMA)
    assert stored["typicality"].to_pylist() == [1, 2, 3]
    assert rank_images([], tmp_path / "none.parquet").of_label == {}
