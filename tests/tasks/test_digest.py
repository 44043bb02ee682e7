from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mapped_root import LABELS, map_shard, without

from diffmining_core.clusters.changes import ClusterChange
from diffmining_core.report.digest import MARKDOWN_BYTES
from diffmining_core.results.references import Results, Shard, results_of
from diffmining_core.store.ledger import Attempt, complete, finished, read_manifests
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.digest import (
    NightOptions,
    changed_images,
    digest,
    digest_markdown,
    in_turn,
    label_changes,
    model_words,
    night_name,
    nights,
    publish_nights,
    read_digest,
    work_since,
)
from tasks.units import Done

FirstRun = tuple[Path, dict[str, Any], int]

OPTIONS = NightOptions(asked="all", price=3.0, currency="EUR")
FIRST, SECOND, THIRD = "2026-11-18T02-00Z", "2026-11-19T02-00Z", "2026-11-20T02-00Z"


def results(*dataset: Shard, **changes: Any) -> Results:
    nothing: dict[str, Any] = {
        "typicality": tuple("" for _ in dataset),
        "selection": "",
        "clusters": (),
        "finetune": None,
        "compared": (),
        "typicality_before": (),
        "selection_before": None,
    }
    images = sum(shard.images for shard in dataset)
    return Results(dataset=dataset, images=images, size=64, **{**nothing, **changes})


@pytest.fixture
def tell(root: Path, first_run: FirstRun) -> Callable[..., Done]:
    """Tells a night of the mined root."""

    def told(night: str, options: NightOptions = OPTIONS) -> Done:
        return digest.fn(str(root), night, "streets", first_run[1]["report"], options)

    return told


def test_a_report_says_what_it_was_made_from(first_run: FirstRun) -> None:
    root, summary, _ = first_run
    found = results_of(open_root(str(root)), summary["report"])
    assert len(found.dataset) == summary["shards"] and found.images == summary["images"]
    assert [label for label, _ in found.clusters] == sorted(summary["labels"])
    manifest = finished(open_root(str(root)), "report", summary["report"])
    assert manifest.inputs[0] == found.selection


def test_on_the_first_night_everything_is_new(
    root: Path, first_run: FirstRun, tell: Callable[..., Done]
) -> None:
    told = read_digest(str(root), tell(FIRST).key)
    assert told.previous is None and told.measured
    assert (told.new_images, told.new_shards, told.gone_images) == (16, 3, 0)
    assert told.new_labels == ("Almara", "Borvik", "Cendria", "Dorrava")
    assert told.entered == len(told.shown) > 0 and told.left == told.moved == 0
    assert told.model == "finetuned" and told.work.gpu_seconds == 0 and told.work.cost is None
    opened = open_root(str(root))
    model_stages = ("finetune", "typicality", "features")
    made = [m for stage in model_stages for m in read_manifests(opened, stage)]
    assert told.work.cpu_seconds == pytest.approx(sum(m.seconds for m in made), abs=0.01)

    page = Path(publish_nights(str(root), "streets", FIRST))
    assert page == root / "nights" / FIRST / "index.html"
    for link in re.findall(r'(?:href|src)="([^"#]+)', page.read_text()):
        assert (page.parent / link).exists(), link
    said = digest_markdown(str(root), tell(FIRST).key, str(page))
    assert said.count("data:image/png") == len(told.shown)
    assert len(said.encode()) < MARKDOWN_BYTES


def test_the_same_night_again_is_the_same_unit(root: Path, tell: Callable[..., Done]) -> None:
    first = tell(FIRST)
    assert first.computed
    assert tell(FIRST) == replace(first, computed=False)
    second = tell(SECOND)
    told = read_digest(str(root), second.key)
    assert (told.measured, told.previous, told.shown) == (False, FIRST, ())
    assert told.work.cpu_seconds == told.work.gpu_seconds == 0
    assert tell(SECOND).key == second.key
    assert finished(open_root(str(root)), "night", second.key).inputs[0] == first.key


def test_a_night_that_others_were_told_against_stays_as_it_was(
    root: Path, tell: Callable[..., Done]
) -> None:
    first, second = tell(FIRST), tell(SECOND)
    assert tell(FIRST, replace(OPTIONS, asked="other")) == Done("night", first.key, False)
    time.sleep(1.1)  # manifests count seconds
    again = tell(SECOND, replace(OPTIONS, asked="other"))
    assert again.computed and again.key != second.key
    named = {night_name(m): m.key for m in nights(str(root))}
    assert named == {FIRST: first.key, SECOND: again.key}, "one row for each night, the later one"
    third = finished(open_root(str(root)), "night", tell(THIRD).key)
    assert third.inputs[0] == again.key


def test_pages_of_all_nights_lead_to_each_other(root: Path, tell: Callable[..., Done]) -> None:
    for night in (FIRST, SECOND, THIRD):
        tell(night)
        publish_nights(str(root), "streets", night)
    pages = root / "nights"
    assert f'href="../{THIRD}/index.html"' in (pages / SECOND / "index.html").read_text()
    assert f'href="../{SECOND}/index.html"' in (pages / FIRST / "index.html").read_text()
    listed = re.findall(r'href="([^"/]+)/index.html"', (pages / "index.html").read_text())
    assert listed == ["..", THIRD, SECOND, FIRST]


def test_what_is_no_nights_name_is_refused(tell: Callable[..., Done]) -> None:
    with pytest.raises(ValueError, match="does not match"):
        tell("../../etc")


def test_only_images_that_came_or_went_are_counted(tmp_path: Path) -> None:
    opened = open_root(str(tmp_path))
    first, second = map_shard(tmp_path, 0)[0], map_shard(tmp_path, 1)[0]
    elsewhere = map_shard(tmp_path, 2, images_of=0)[0]
    relabelled = map_shard(tmp_path, 3, ("almara", "borvik", "dorrava"), images_of=0)[0]

    def changes(before: Results | None, now: Results) -> tuple[int, int, int]:
        found = changed_images(opened, before, now)
        return found["new_images"], found["gone_images"], found["relabelled"]

    assert changes(None, results(first)) == (9, 0, 0)
    assert changes(results(first), results(first, second)) == (9, 0, 0)
    assert changes(results(first, second), results(second)) == (0, 9, 0)
    assert changes(results(first), results(without(first, 0, 4))) == (0, 2, 0)
    assert changes(results(without(first, 0)), results(first, second)) == (10, 0, 0)
    assert changes(results(first), results(elsewhere)) == (0, 0, 0)
    assert changes(results(first), results(relabelled)) == (0, 0, 3)
    assert changes(results(first), results(first, elsewhere)) == (9, 0, 0), "there twice now"


def test_gpu_hours_count_every_gpu_and_only_tonights_results(tmp_path: Path) -> None:
    opened = open_root(str(tmp_path))

    def unit(stage: str, device: str, inputs: tuple[str, ...] = (), **facts: Any) -> str:
        def produce(attempt: Attempt) -> None:
            attempt.facts.update(facts)

        made = Unit(stage, "test", inputs, {"device": device})
        manifest = complete(opened, made, produce, device)
        path = tmp_path / "manifests" / stage / f"{made.key}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1800.0}))
        return manifest.key

    finetune = unit("finetune", "cuda:0", processes=4)
    maps, on_cpu = unit("typicality", "cuda"), unit("typicality", "cpu")
    clusters = unit("clusters", "cpu", (unit("features", "cuda:1"),))
    now = results(
        finetune=finetune,
        typicality=(maps,),
        typicality_before=(on_cpu,),
        clusters=(("almara", clusters),),
    )
    work = work_since(opened, None, now, OPTIONS)
    assert work.gpu_seconds == 1800 * (4 + 1 + 1)
    assert work.cpu_seconds == 1800
    assert (work.hours, work.cost) == ("3.00 GPU hours", "9.00 EUR")
    manifest = finished(opened, "finetune", finetune)
    later = replace(manifest, created="9999-01-01T00:00:00+00:00")
    assert work_since(opened, later, now, OPTIONS).gpu_seconds == 0


def test_the_model_is_kept_or_finetuned_anew() -> None:
    none, one, other = results(), results(finetune="1"), results(finetune="2")
    assert model_words(None, none) == model_words(one, none) == "not finetuned"
    assert model_words(None, one) == model_words(none, one) == "finetuned"
    assert model_words(one, one) == "kept"
    assert model_words(one, other) == "finetuned anew"


def test_changes_lead_to_the_pages_of_their_labels() -> None:
    changes = [
        ClusterChange("barn", "stayed", 0, 0),
        ClusterChange("Old <b>", "left", 1, None),
        ClusterChange("tower", "entered", None, 0),
        ClusterChange("tower", "moved", 2, 1),
    ]
    gone, tower = label_changes(changes, ["Old <b>", "barn", "tower"], ["barn", "tower"])
    assert (gone.page, gone.left) == (None, (1,))
    assert gone.page_before is not None and re.fullmatch(r"old-b-[0-9a-f]{6}", gone.page_before)
    assert (tower.page, tower.entered, tower.moved) == ("tower", (0,), ((2, 1),))


def test_every_label_is_shown_before_any_has_a_second() -> None:
    entered = [ClusterChange(label, "entered", None, n) for label in LABELS for n in range(3)]
    turn = [(change.label, change.after) for change in in_turn(entered)]
    assert turn[:4] == [(LABELS[0], 0), (LABELS[1], 0), (LABELS[2], 0), (LABELS[0], 1)]
