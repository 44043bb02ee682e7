"""The fixed names at a root: each leads to what was published last, the overview to the others."""

from __future__ import annotations

import json
from pathlib import Path

from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.report import PLACE, publish_page


def made(root: Path, stage: str, page: str) -> str:
    unit = Unit(stage, "test", (), {})

    def produce(attempt: Attempt) -> None:
        attempt.write_bytes("root.html", page.encode())

    complete(open_root(str(root)), unit, produce)
    return unit.key


def test_the_overview_leads_to_the_pages_that_are_there(tmp_path: Path) -> None:
    overview = made(tmp_path, "report", f'<a href="{PLACE}labels/a.html"></a><!--pages-->')
    publish_page(str(tmp_path), overview)
    (tmp_path / "summary.json").write_text(json.dumps({"report": overview}))
    index = tmp_path / "index.html"
    assert "More of this collection" not in index.read_text()
    assert f'"report/{overview}/attempt-' in index.read_text()

    located = made(tmp_path, "localization", f'<img src="{PLACE}a.webp">')
    publish_page(str(tmp_path), located, "localization", "localization.html")
    assert 'href="localization.html"' in index.read_text()
    assert "parallel.html" not in index.read_text()
    assert f'"localization/{located}/attempt-' in (tmp_path / "localization.html").read_text()
