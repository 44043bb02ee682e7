"""The fixed names at a root: each leads to what was published last, the overview to the others."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from diffmining_core.results.references import Results
from diffmining_core.store.ledger import Attempt, complete
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.report import PLACE, publish_page


def made(root: Path, stage: str, page: str, typicality: tuple[str, ...] = ()) -> str:
    unit = Unit(stage, "test", typicality, {})
    results = Results((), 0, 64, typicality, "", (), None, (), (), None)

    def produce(attempt: Attempt) -> None:
        attempt.write_bytes("root.html", page.encode())
        attempt.write_json("results.json", asdict(results))

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


def test_what_it_took_stands_at_the_root_and_not_in_the_unit(tmp_path: Path) -> None:
    unit = Unit("typicality", "test", (), {})

    def measure(attempt: Attempt) -> None:
        attempt.write_bytes("maps", b"")
        attempt.counts["unet_forwards"] = 12_345

    complete(open_root(str(tmp_path)), unit, measure)
    publish_page(str(tmp_path), made(tmp_path, "report", "<p></p><!--cost-->", (unit.key,)))
    page = (tmp_path / "index.html").read_text()
    assert "12,345 UNet forwards" in page
    assert "diffusers" in page, "its versions"
    (stored,) = tmp_path.glob("report/*/attempt-*/root.html")
    assert stored.read_text() == "<p></p><!--cost-->"
