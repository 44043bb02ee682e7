"""Places365 by size alone: index its 1,803,460 rows, plan a resume, and weigh what is stored.

The manifest is made up (365 labels, 256 × 256 px, ids as a dataset that declares them would have);
all else is the real code: `diffmining index` as a user runs it, in its own process, then what a
resume does before it computes anything, against a root where all is done, and typicality maps of a
few shards of realistic size, written for real, for objects and bytes per shard.

    python -m benchmarks.places                        # on local disk
    python -m benchmarks.places --root s3://bucket/x   # on the S3 server of AWS_ENDPOINT_URL
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from diffmining_core.models.files import ModelSource
from diffmining_core.patches.scoring import KINDS, PATCH_SCHEMA
from diffmining_core.patches.selection import TopPatches
from diffmining_core.store import roots
from diffmining_core.store.ledger import Attempt, complete, published, read_manifest
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import plan_stage
from diffmining_core.store.units import Unit
from flows.parameters import MineParameters
from tasks.index import DATASET_STAGE, STAGE, dataset_shards, dataset_unit
from tasks.models import ModelReference
from tasks.patches import patches_unit
from tasks.selection import selection_unit
from tasks.typicality import wanted_unit

LABELS = 365
SIDE = 256
CELL = 8
MODEL = ModelReference(ModelSource("stable-diffusion-v1-5/stable-diffusion-v1-5"), "0" * 64)
WRITERS = 16


def main() -> None:
    """Make, index, plan, weigh, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=1_803_460)
    parser.add_argument("--root", help="where the results go; a temporary folder if not given")
    parser.add_argument("--weighed", type=int, default=3, help="shards whose maps are written")
    arguments = parser.parse_args()
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="places-") as scratch:
        manifest = Path(scratch) / "places.parquet"
        write_manifest(manifest, arguments.rows)
        url = arguments.root or str(Path(scratch) / "root")
        rows += index(manifest, url)
        root = open_root(url)
        rows += again(manifest, url)
        parameters = MineParameters(dataset=str(manifest), root=url)
        finish_all(root, parameters)
        rows += plan(root, parameters)
        rows += weigh(root, arguments.weighed, arguments.rows)
    rows += select(arguments.rows)
    place = url.partition("://")[0] if "://" in url else "local disk"
    print(f"\n{arguments.rows} rows, {os.cpu_count()} cores, {place}\n")
    print("| what | measured |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value} |")


def write_manifest(path: Path, rows: int) -> None:
    """A Parquet manifest whose rows declare id and size, as one made from the images has them."""
    rng = np.random.default_rng(0)
    schema = pa.schema(
        [("uri", pa.string()), ("label", pa.string()), ("image_id", pa.string()),
         ("width", pa.int32()), ("height", pa.int32())]
    )  # fmt: skip
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 100_000):
            n = min(100_000, rows - start)
            labels = [f"label_{(start + i) * LABELS // rows:03d}" for i in range(n)]
            ids = [rng.bytes(16).hex() for _ in range(n)]
            uris = [f"s3://places/{label}/{start + i:08d}.jpg" for i, label in enumerate(labels)]
            sides = pa.array([SIDE] * n, pa.int32())
            writer.write_table(pa.table([uris, labels, ids, sides, sides], schema=schema))


def index(manifest: Path, url: str) -> list[tuple[str, str]]:
    """Seconds and peak memory of `diffmining index`, the start of Prefect's server with it."""
    seconds = timed(lambda: run_index(manifest, url))[0]
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return [
        ("`diffmining index`", f"{seconds:.0f} s"),
        ("its largest process", f"{peak:.0f} MiB"),
    ]


def again(manifest: Path, url: str) -> list[tuple[str, str]]:
    """Seconds of the same command where nothing has changed."""
    return [("`diffmining index` again", f"{timed(lambda: run_index(manifest, url))[0]:.0f} s")]


def run_index(manifest: Path, url: str) -> None:
    """The command, as a user gives it."""
    words = ["-m", "flows", "index", "--dataset", str(manifest), "--root", url]
    subprocess.run([sys.executable, *words], check=True)


def finish_all(root: Root, parameters: MineParameters) -> None:
    """Publish a unit of each later stage for every shard, with a byte in place of its data."""

    def produce(attempt: Attempt) -> None:
        attempt.write_bytes("data", b"0")
        attempt.counts["set_aside"] = 0

    units = [unit for of_stage in wanted(root, parameters).values() for unit in of_stage]
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(lambda unit: complete(root, unit, produce), units))


def wanted(root: Root, parameters: MineParameters) -> dict[str, list[Unit]]:
    """The units that a run wants of the stages that work shard by shard, and of the selection."""
    known = published(root, STAGE)
    unit = dataset_unit(source_digest(parameters.dataset), known)
    assert read_manifest(root, DATASET_STAGE, unit.key), "the dataset is indexed"
    shards = dataset_shards(root.url, unit.key)
    options = parameters.typicality_options(SIDE)
    there = published(root, "typicality")
    maps = [wanted_unit(shard, MODEL, options, there) for shard in shards]
    plan_stage(root, "typicality", [unit.key for unit in maps])
    patches = [patches_unit(unit.key, parameters.patch_options(SIDE, CELL)) for unit in maps]
    plan_stage(root, "patches", [unit.key for unit in patches])
    keys = [unit.key for unit in patches]
    selection = selection_unit(shards, keys, parameters.top, parameters.seed)
    return {"typicality": maps, "patches": patches, "selection": [selection]}


def source_digest(dataset: str) -> str:
    """What identifies the dataset's listing."""
    from diffmining_core.images.sources import open_source

    return open_source(dataset).digest


def plan(root: Root, parameters: MineParameters) -> list[tuple[str, str]]:
    """Seconds, listings and reads of a resume up to the point where it knows what is missing."""
    listed: Counter[str] = Counter()

    def missing() -> int:
        units = wanted(root, parameters)
        return sum(
            len({unit.key for unit in of_stage} - published(root, stage))
            for stage, of_stage in units.items()
        )

    list_folder = roots.Root.entries

    def listed_folder(self: Root, rel: str = "") -> Any:
        listed[rel] += 1
        return list_folder(self, rel)

    roots.Root.entries = listed_folder  # type: ignore[method-assign] # only to count
    try:
        with counted_requests(root) as requests:
            seconds, left = timed(missing)
    finally:
        roots.Root.entries = list_folder  # type: ignore[method-assign] # as above
    assert left == 0
    return [
        ("planning a resume, 4 stages, nothing missing", f"{seconds:.1f} s"),
        ("its listings", ", ".join(f"{name} {count}" for name, count in listed.items())),
        ("its requests", written(requests)),
    ]


@contextmanager
def counted_requests(root: Root) -> Iterator[Counter[str]]:
    """Counts the requests to S3 by their names; nothing on other kinds of root."""
    counts: Counter[str] = Counter()
    if "s3" not in root.fs.protocol:
        yield counts
        return
    kind = type(root.fs)
    call = kind._call_s3

    async def counted(self: Any, method: str, *arguments: Any, **options: Any) -> Any:
        counts[method] += 1
        return await call(self, method, *arguments, **options)

    kind._call_s3 = counted
    try:
        yield counts
    finally:
        kind._call_s3 = call


def written(requests: Counter[str], units: int = 1) -> str:
    """Requests per unit, by name."""
    if not requests:
        return "no S3"
    each = ", ".join(f"{name} {count / units:g}" for name, count in requests.most_common())
    return f"{sum(requests.values()) / units:g} ({each})"


def weigh(root: Root, shards: int, rows: int) -> list[tuple[str, str]]:
    """Objects and bytes of the maps of whole shards, and what that makes for all."""
    seconds, objects, size = 0.0, 0, 0
    with counted_requests(root) as requests:
        for shard in range(shards):
            produce = partial(write_maps, maps=realistic_maps(shard))
            unit = Unit("typicality", "weighed", (str(shard),), {})
            took, manifest = timed(partial(complete, root, unit, produce))
            seconds += took
            objects += len(manifest.files) + 1
            size += sum(record["bytes"] for record in manifest.files.values())
    total = -(-rows // 1000)
    return [
        ("maps of 1000 images: objects, manifest included", f"{objects / shards:.0f}"),
        ("their bytes", f"{size / shards / 1e6:.2f} MB"),
        ("writing, reading back and publishing them", f"{seconds / shards:.2f} s"),
        ("requests for that", written(requests, shards)),
        (f"× {total} shards", f"{objects / shards * total:.0f} objects, "
                              f"{size / shards * total / 1e9:.1f} GB"),
    ]  # fmt: skip


def realistic_maps(seed: int) -> RaggedMaps:
    """1000 maps of 32 × 32 with the noise of 100 draws on a smooth signal."""
    rng = np.random.default_rng(seed)
    side = SIDE // CELL
    coarse = rng.normal(0, 3e-3, (1000, 8, 8)).repeat(side // 8, axis=1).repeat(side // 8, axis=2)
    means = (coarse + rng.normal(0, 2e-3, coarse.shape)).astype(np.float32)
    m2s = rng.gamma(50, 1e-5, coarse.shape).astype(np.float32)
    null_loss = rng.normal(0.1, 0.02, 1000).astype(np.float32)
    ids = [rng.bytes(16).hex() for _ in range(1000)]
    labels = [f"label_{i % LABELS:03d}" for i in range(1000)]
    return RaggedMaps.pack(list(means), list(m2s), null_loss, ids, labels, 100)


def select(rows: int) -> list[tuple[str, str]]:
    """Seconds and peak memory of merging the patches of all shards into the top of each label."""
    best, seconds = TopPatches.empty(1000, 42), 0.0
    for shard in tqdm(range(-(-rows // 1000)), desc="selection", unit=" shards"):
        table, uris = drawn_patches(shard)
        took, best = timed(partial(best.add, table, uris, f"{shard:032x}"))
        seconds += took
    took, ranked = timed(best.ranked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [
        (f"merging {rows * 15:,} patches into {ranked.num_rows:,}", f"{seconds + took:.0f} s"),
        ("the most memory of this process", f"{peak:.0f} MiB"),
    ]


def drawn_patches(shard: int) -> tuple[pa.Table, dict[tuple[str, str], str]]:
    """The patch table of 1000 images, five of each kind, and where the images are."""
    rng = np.random.default_rng(shard)
    ids = [rng.bytes(16).hex() for _ in range(1000)]
    labels = [f"label_{label:03d}" for label in rng.integers(0, LABELS, 1000)]
    image = np.repeat(np.arange(1000), 15)
    columns = {
        "image_id": pa.array(ids).take(pa.array(image)),
        "label": pa.array(labels).take(pa.array(image)),
        "kind": pa.array(np.tile(np.repeat(KINDS, 5), 1000)),
        "rank": pa.array(np.tile(np.arange(5, dtype=np.int32), 3000)),
        "y": pa.array(rng.integers(0, 206, 15_000).astype(np.int32)),
        "x": pa.array(rng.integers(0, 206, 15_000).astype(np.int32)),
        "size": pa.array(np.full(15_000, 50, np.int32)),
        "typicality": pa.array(rng.normal(0, 3e-3, 15_000).astype(np.float32)),
    }
    uris = {
        (image_id, label): f"s3://places/{label}/{image_id}.jpg"
        for image_id, label in zip(ids, labels, strict=True)
    }
    return pa.table(columns, schema=PATCH_SCHEMA), uris


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result of one call."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
