"""The flow `mine`, run for real: what it computes, what it finds again, what a failure costs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from served import paged

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, index_shard, shard_content_id
from diffmining_core.store.ledger import published, read_manifest, read_manifests, read_table
from diffmining_core.store.roots import open_root
from flows.mine import mine
from flows.parameters import MineParameters

Make = Callable[..., MineParameters]
FirstRun = tuple[Path, dict[str, Any], int]

PATCH = ("label", "kind", "label_rank", "image_id", "y", "x")
STAGES = (
    "index", "finetune", "typicality", "patches", "selection", "features", "clusters",
    "evaluation", "signs", "report",
)  # fmt: skip


def table(root: Path, stage: str, of: Callable[[pa.Table], bool] = lambda table: True) -> pa.Table:
    """All rows of a stage's published tables that `of` takes."""
    opened = open_root(str(root))
    tables = [
        read_table(opened, manifest, f"{stage}.parquet")
        for manifest in read_manifests(opened, stage)
    ]
    return pa.concat_tables(filter(of, tables))


def rows(table: pa.Table, *columns: str) -> list[tuple[Any, ...]]:
    return sorted(zip(*(table[name].to_pylist() for name in columns), strict=True))


def files(root: Path) -> dict[str, bytes]:
    """Every file at the root by its path."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def dift_forwards(root: Path) -> int:
    """8 for each image with a highest patch: images are embedded once per label."""
    return 8 * len(set(rows(table(root, "features"), "image_id")))


def test_a_whole_run_computes_what_the_arithmetic_says(first_run: FirstRun) -> None:
    root, summary, counted = first_run
    measured = sum(m.counts["images"] for m in read_manifests(open_root(str(root)), "typicality"))
    assert measured - 16 in (6, 4), "one shard is measured before finetuning too"
    finetuned, typicality = 6 * 2, 2 * 2 * measured
    expected = finetuned + typicality + dift_forwards(root)
    assert summary["unet_forwards"] == counted == expected
    assert summary["computed"] == {
        "index": 3, "dataset": 1, "finetune": 1, "typicality": 4, "patches": 4, "selection": 2,
        "features": 4, "clusters": 4, "evaluation": 1, "signs": 1, "report": 1,
    }  # fmt: skip


def test_the_summary_says_all_that_a_run_is_asked_for(first_run: FirstRun) -> None:
    root, returned, _ = first_run
    summary = json.loads((root / "summary.json").read_text())
    assert {**summary, "page": returned["page"]} == json.loads(json.dumps(returned))
    assert summary["average_precision"].keys() == {"before", "after", "base_rate"}
    assert summary["hits"].keys() == {"highest", "random", "lowest"}
    assert summary["cluster_purity"].keys() == {"Almara", "Borvik", "Cendria", "Dorrava"}
    assert (summary["images"], summary["shards"], summary["set_aside"]) == (16, 3, 0)
    assert summary["labels"] == dict.fromkeys(("Almara", "Borvik", "Cendria", "Dorrava"), 4)
    stages = {"typicality_before", *STAGES}
    assert summary["stages"].keys() == stages
    assert 0 < sum(summary["stages"].values()) <= summary["seconds"] + 0.1
    assert summary["peak_memory_mb"] > 100
    assert (returned["page"], summary["page"]) == (str(root / "index.html"), "index.html")


def test_the_page_leads_to_files_that_are_there(first_run: FirstRun) -> None:
    root, _, _ = first_run
    page = (root / "index.html").read_text()
    assert "@PREFIX@" not in page
    linked = {part.split('"')[0].split("#")[0] for part in page.split('href="')[1:]}
    inner = {link for link in linked if link and "://" not in link and not link.startswith("data:")}
    assert inner
    assert all((root / link).exists() for link in inner)


def test_the_same_command_again_finds_everything(
    root: Path, parameters: Make, forwards: Counter[str]
) -> None:
    before = files(root)
    summary = mine(parameters(root))
    assert forwards["calls"] == summary["unet_forwards"] == 0
    assert summary["computed"] == {}
    changed = {name for name, data in files(root).items() if before.get(name) != data}
    assert changed <= {"index.html", "summary.json"}  # a copied root's page has a new address
    (root / "summary.json").unlink()  # as if the last run had died just before it
    mine(parameters(root))
    assert (root / "summary.json").exists()


def test_another_k_computes_clusters_and_page_only(
    root: Path, parameters: Make, forwards: Counter[str]
) -> None:
    first_page = (root / "index.html").read_bytes()
    summary = mine(parameters(root, k=1))
    assert forwards["calls"] == summary["unet_forwards"] == 0
    assert summary["computed"] == {"clusters": 4, "evaluation": 1, "signs": 1, "report": 1}
    assert (root / "index.html").read_bytes() != first_page

    mine(parameters(root, k=2))
    assert (root / "index.html").read_bytes() == first_page
    k = json.loads((root / "summary.json").read_text())["report"]
    assert k != summary["report"], "the summary tells of the page that is shown"


def test_several_shards_give_what_one_gives(
    prefect_api: str, tmp_path: Path, parameters: Make
) -> None:
    # Without finetuning: whose order of images follows the shards.
    several, one = tmp_path / "several", tmp_path / "one"
    assert mine(parameters(several, finetune_steps=0))["shards"] == 3
    summary = mine(parameters(one, finetune_steps=0, shard_rows=100))
    assert summary["shards"] == 1
    assert "before" not in summary["average_precision"]

    selections = [table(root, "selection").sort_by([(c, "ascending") for c in PATCH[:3]])
                  for root in (several, one)]  # fmt: skip
    assert rows(selections[0], *PATCH) == rows(selections[1], *PATCH)
    typicality = [selection["typicality"].to_numpy() for selection in selections]
    np.testing.assert_allclose(typicality[0], typicality[1], rtol=1e-4, atol=1e-6)
    clustered = [rows(table(root, "clusters"), *PATCH, "cluster") for root in (several, one)]
    assert clustered[0] == clustered[1]


@pytest.fixture
def grown(dataset: Path, scenes: Path) -> Iterator[Path]:
    """The dataset with a new label of 4 images and one image more in two old labels."""
    added = [dataset / "Elsund" / f"Elsund_0000{number}.png" for number in (1, 2, 3, 4)]
    added += [dataset / label / f"{label}_00005.png" for label in ("Almara", "Borvik")]
    (dataset / "Elsund").mkdir()
    for file in added:
        shutil.copy(scenes / file.relative_to(dataset), file)
    yield dataset
    for file in added:
        file.unlink()
    (dataset / "Elsund").rmdir()


def test_new_images_cost_only_themselves(
    root: Path, grown: Path, parameters: Make, forwards: Counter[str]
) -> None:
    stored = files(root)
    embedded = dift_forwards(root)
    summary = mine(parameters(root))
    assert summary["computed"]["index"] == 1
    assert summary["computed"]["typicality"] == 1
    assert "finetune" not in summary["computed"]
    typicality = 2 * 2 * 6
    assert forwards["images"] == summary["unet_forwards"]
    assert summary["unet_forwards"] == typicality + dift_anew(root, stored)
    assert 0 < dift_anew(root, stored) < embedded
    kept = {
        name: data
        for name, data in stored.items()
        if "/" in name and not name.startswith("plans/")  # of the last run
    }
    assert {name: files(root)[name] for name in kept} == kept
    assert any("Elsund" in note and "--retrain" in note for note in summary["notes"])
    assert (summary["images"], summary["shards"]) == (22, 4)
    assert 0 <= summary["average_precision"]["before"] <= 1

    again = mine(parameters(root))
    assert again["computed"] == {}

    retrained = mine(parameters(root, retrain=True))
    assert retrained["computed"]["finetune"] == 1
    assert retrained["computed"]["typicality"] >= 4
    assert not any("--retrain" in note for note in retrained["notes"])
    assert mine(parameters(root))["computed"] == {}, "the newer model is the one to keep"


def dift_anew(root: Path, stored: dict[str, bytes]) -> int:
    """DIFT forwards that the features units not in `stored` report."""
    manifests = read_manifests(open_root(str(root)), "features")
    return sum(
        manifest.counts.get("unet_forwards", 0)
        for manifest in manifests
        if f"manifests/features/{manifest.key}.json" not in stored
    )


def test_growth_compares_before_and_after_on_the_same_shards(
    root: Path, dataset: Path, scenes: Path, parameters: Make
) -> None:
    """A new shard that sorts before the one measured before finetuning moves nothing."""
    opened = open_root(str(root))
    known = [manifest.facts["content_id"] for manifest in read_manifests(opened, "index")]
    before = json.loads((root / "summary.json").read_text())["average_precision"]["before"]
    added = dataset / "Almara" / "Almara_00005.png"
    data = (scenes / "Almara" / added.name).read_bytes()
    try:
        for number in itertools.count():  # what follows a PNG's end changes its id alone
            added.write_bytes(data + str(number).encode())
            if shard_content_id(index_shard([FoundImage(str(added), "Almara", "")])) < min(known):
                break
        summary = mine(parameters(root))
    finally:
        added.unlink()
    assert summary["computed"]["typicality"] == 1
    assert summary["average_precision"]["before"] == before


def test_a_failing_unit_stops_no_other_and_is_named(
    root: Path, dataset: Path, parameters: Make, forwards: Counter[str]
) -> None:
    image = dataset / "Cendria" / "Cendria_00001.png"
    data, times = image.read_bytes(), image.stat()
    anew = parameters(root, draws=3, before_shards=0)
    there = published(open_root(str(root)), "typicality")
    try:
        image.write_bytes(b"\0" * len(data))  # the disk lost it, and nothing in the listing tells
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(InputError, match=image.name):
            mine(anew)
    finally:
        image.write_bytes(data)
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    others = published(open_root(str(root)), "typicality") - there
    assert len(others) == 2

    stored = files(root)
    forwards.clear()
    summary = mine(anew)
    assert summary["computed"]["typicality"] == 1
    (mended,) = published(open_root(str(root)), "typicality") - there - others
    manifest = read_manifest(open_root(str(root)), "typicality", mended)
    assert manifest is not None
    typicality = 2 * 3 * manifest.counts["images"]
    assert forwards["images"] == summary["unet_forwards"] == typicality + dift_anew(root, stored)


def test_few_bad_images_are_set_aside_with_their_reasons(
    root: Path, dataset: Path, parameters: Make
) -> None:
    bad = dataset / "Almara" / "half.jpg"
    tiny, wide = dataset / "Borvik" / "dot.png", dataset / "Cendria" / "wide.png"
    try:
        Image.new("RGB", (200, 200), "teal").save(bad)
        bad.write_bytes(bad.read_bytes()[:700])
        Image.new("RGB", (1, 1)).save(tiny)
        Image.new("L", (30_000, 40)).save(wide)
        with pytest.raises(InputError, match=r"3 of 3 images .* cannot be used"):
            mine(parameters(root))
        summary = mine(parameters(root, max_bad_share=1.0))
    finally:
        for file in (bad, tiny, wide):
            file.unlink(missing_ok=True)
    assert (summary["images"], summary["set_aside"]) == (16, 3)
    assert summary["unet_forwards"] == 0
    page = (root / "index.html").read_text()
    for words in ("half.jpg", "truncated", "dot.png", "1 px", "wide.png", "30000 px"):
        assert words in page, words


def test_a_label_with_one_image_is_refused_and_what_is_indexed_is_kept(
    root: Path, dataset: Path, scenes: Path, parameters: Make
) -> None:
    lonely = dataset / "Elsund" / "Elsund_00001.png"
    lonely.parent.mkdir()
    try:
        shutil.copy(scenes / "Elsund" / lonely.name, lonely)
        with pytest.raises(InputError, match=r"fewer: Elsund \(1\)"):
            mine(parameters(root))
    finally:
        shutil.rmtree(lonely.parent)
    assert mine(parameters(root))["computed"] == {"dataset": 1}, "planned anew, nothing read"


def test_the_prefect_server_knows_the_run(prefect_api: str, root: Path, parameters: Make) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
    from prefect.client.schemas.sorting import FlowRunSort

    mine(parameters(root, k=1))
    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        assert run.state is not None
        assert run.state.is_completed()
        assert run.parameters["parameters"]["k"] == 1
        of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        artifacts = client.read_artifacts(artifact_filter=of_run)
        assert any(artifact.type == "markdown" for artifact in artifacts)
        kinds = {artifact.type for artifact in paged(client.read_artifacts)}
    assert "progress" in kinds
