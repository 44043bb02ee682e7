"""The plot of the speed benchmark is drawn whatever was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("ratios", [(1.73, 1.73, 1.73), (0.5, 9.0, 2.0)])
def test_a_row_is_drawn_where_all_rounds_are_alike_and_where_they_are_far_apart(
    ratios: tuple[float, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    from benchmarks.speed_chart import draw
    from benchmarks.speed_table import Row, Table

    row = Row("finetuning", "a step", "images/s", 30.0, 52.0, ratios, peak_share=0.3)
    table = Table("a machine", {}, [row])
    draw([table], tmp_path)
    assert f"{row.ratio:.2f}×" in (tmp_path / "speed.svg").read_text(encoding="utf-8")
    with Image.open(tmp_path / "speed.png") as picture:
        assert len(picture.getcolors(1 << 16) or ()) > 3
