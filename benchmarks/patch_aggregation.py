"""Patches and selection of many shards, on threads, on processes and on a scheduler elsewhere.

Makes maps of smooth random fields at a local root, picks and selects their patches in each of the
three ways with 1/5, 1/2 and all of the shards, adds one shard more, and checks that the results are
identical: `python -m benchmarks.patch_aggregation`. On a busy machine read the maps per processor
second, of all processes together; starting them is part of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil  # type: ignore[import-untyped]  # its types are another package
import pyarrow as pa

from diffmining_core.images.shards import SHARD_SCHEMA
from diffmining_core.results.references import Shard
from diffmining_core.store.ledger import Attempt, complete, read_manifests
from diffmining_core.store.maps import RaggedMaps, write_maps
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks import index
from tasks.dask_client import SCHEDULER
from tasks.patches import patches, patches_unit
from tasks.selection import select

SHAPES = ((32, 32), (32, 32), (32, 43), (43, 32), (32, 48))
"""Cells of the maps: images of 256 px on the shorter side."""
LABELS = 10
OPTIONS = {"size": 50, "per_image": 5, "seed": 42, "cell": 8}
TOP = 1000
WORKERS = 2

Field = npt.NDArray[np.float32]


def field(rng: np.random.Generator, shape: tuple[int, int]) -> Field:
    """A smooth random field [h, w]: noise at a quarter of the resolution, and a little of its own.

    Interpolated bilinearly, as is what typicality sees of an image.
    """
    coarse = rng.normal(0, 1e-3, (shape[0] // 4 + 2, shape[1] // 4 + 2))
    rows, columns = (np.linspace(0, n - 1.001, m) for n, m in zip(coarse.shape, shape, strict=True))
    y, x = rows.astype(int), columns.astype(int)
    down, right = (rows - y)[:, None], columns - x
    above = coarse[y][:, x] * (1 - right) + coarse[y][:, x + 1] * right
    below = coarse[y + 1][:, x] * (1 - right) + coarse[y + 1][:, x + 1] * right
    smooth: Field = (above * (1 - down) + below * down).astype(np.float32)
    return smooth + rng.normal(0, 1e-4, shape).astype(np.float32)


def make_shard(root: str, number: int, maps: int) -> tuple[Shard, str]:
    """Shard `number`, as if its images had been indexed and measured, and the key of its maps."""
    ids = [hashlib.sha256(f"{number} {i}".encode()).hexdigest()[:32] for i in range(maps)]
    labels = [f"label {i % LABELS}" for i in range(maps)]

    def indexed(attempt: Attempt) -> None:
        values: dict[str, list[Any]] = {
            "image_id": ids,
            "uri": [f"/images/{number:05}/{image_id}.jpg" for image_id in ids],
            "label": labels,
            "width": [256] * maps,
            "height": [256] * maps,
            "fingerprint": [""] * maps,
            "set_aside": [None] * maps,
            "declared": [False] * maps,
            "boxes": [None] * maps,
            "detail": [None] * maps,
            "stored": [None] * maps,
        }
        columns = [values[name] for name in SHARD_SCHEMA.names]
        attempt.write_table(index.TABLE, pa.table(columns, schema=SHARD_SCHEMA))

    def measured(attempt: Attempt) -> None:
        rng = np.random.default_rng(number)
        means = [field(rng, SHAPES[i % len(SHAPES)]) for i in range(maps)]
        m2s = [np.square(mean) for mean in means]
        write_maps(attempt, RaggedMaps.pack(means, m2s, [1.0] * maps, ids, labels, n_draws=100))

    made = Unit(index.STAGE, "benchmark", (str(number),), {})
    typicality = Unit("typicality", "benchmark", (str(number),), {})
    opened = open_root(root)
    complete(opened, made, indexed)
    complete(opened, typicality, measured)
    counts = tuple(sorted(Counter(labels).items()))
    return Shard(made.key, made.key, made.key, (), maps, counts, 0, 0), typicality.key


def aggregate(root: str, shards: int, maps: int, workers: int) -> None:
    """Pick and select the patches of the first shards; prints seconds and memory as JSON."""
    mapped = [make_shard(root, number, maps) for number in range(shards)]  # are there: references
    dataset, keys = [shard for shard, _ in mapped], [key for _, key in mapped]
    started = time.monotonic()
    patches.fn(root, keys, OPTIONS, workers)
    picked = time.monotonic()
    patches_keys = [patches_unit(key, OPTIONS).key for key in keys]
    done = select.fn(root, dataset, patches_keys, TOP, OPTIONS["seed"], workers)
    ended = time.monotonic()
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    figures = {
        "patches": picked - started,
        "selection": ended - picked,
        "read": done.counts["tables_read"],
        "processor": sum(one.ru_utime + one.ru_stime for one in usage),
    }
    print(json.dumps(figures))


@dataclass
class Way:
    """One way to run: the processes of `workers`, and those of a scheduler elsewhere."""

    name: str
    workers: int
    environment: dict[str, str]
    elsewhere: list[psutil.Process]


def measured(way: Way, root: str, shards: int, maps: int) -> dict[str, float]:
    """The figures of `aggregate` in a process of its own, and the peaks of memory in MB."""
    command = [sys.executable, "-m", "benchmarks.patch_aggregation", "--aggregate", root]
    sizes = ["--shards", str(shards), "--maps", str(maps), "--workers", str(way.workers)]
    before = sum(_processor_seconds(process) for process in way.elsewhere)
    with tempfile.TemporaryFile("w+") as said:
        program = subprocess.Popen(
            [*command, *sizes],
            stdout=said,
            stderr=said,
            env={**os.environ, **way.environment},
            text=True,
        )
        peaks = watch(program, way.elsewhere)
        said.seek(0)
        output = said.read()
    if program.returncode:
        raise RuntimeError(f"{way.name} failed with status {program.returncode}:\n{output}")
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    figures["processor"] += sum(_processor_seconds(p) for p in way.elsewhere) - before
    return {**figures, "parent": peaks["parent"], "worker": peaks["worker"]}


def watch(program: subprocess.Popen[str], elsewhere: list[psutil.Process]) -> Counter[str]:
    """Peaks of memory in MB, of the program and of the largest other process, once it has ended."""
    parent, peaks = psutil.Process(program.pid), Counter[str]()
    while program.poll() is None:
        for process in [parent, *elsewhere, *_children(parent)]:
            who = "parent" if process == parent else "worker"
            peaks[who] = max(peaks[who], _memory(process))
        time.sleep(0.05)
    return peaks


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss / 1e6)
    except psutil.NoSuchProcess:
        return 0


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def scheduler_elsewhere(folder: Path) -> Iterator[tuple[str, list[psutil.Process]]]:
    """A scheduler and its workers, each started as on a machine of its own; all end with it."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    here = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:

        def start(*arguments: str) -> psutil.Process:
            process = subprocess.Popen(
                [*dask, *arguments, *here, "--scheduler-file", str(file)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)
            return psutil.Process(process.pid)

        processes = [start("scheduler", "--port", "0")]
        while not file.exists():
            time.sleep(0.1)
        one_each = ("worker", "--nthreads", "1", "--no-nanny", "--local-directory", str(folder))
        processes += [start(*one_each) for _ in range(WORKERS)]
        yield json.loads(file.read_text())["address"], processes


def fresh_root(made: Path, root: Path) -> str:
    """A root with links to the shards and maps that were made, and no results."""
    for stage in ("index", "typicality"):
        for folder in (stage, f"manifests/{stage}"):
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            (root / folder).symlink_to(made / folder)
    return str(root)


def results(root: str) -> dict[str, Any]:
    """The checksums of every table that was made at a root."""
    opened = open_root(root)
    return {
        manifest.unit: manifest.files
        for stage in ("patches", "selection")
        for manifest in read_manifests(opened, stage)
    }


COLUMNS = {
    "maps": 0,
    "patches s": 2,
    "maps/s": 0,
    "per core": 0,
    "per cpu s": 0,
    "select s": 2,
    "read": 0,
    "parent MB": 0,
    "worker MB": 0,
}
"""Of the table, each with its decimals."""


def line(way: Way, count: int, figures: dict[str, float], new_maps: int) -> str:
    """One line of the table."""
    cores = os.cpu_count() or 1
    rate = new_maps / figures["patches"]
    values = (
        count,
        figures["patches"],
        rate,
        rate / (min(cores, WORKERS) if way.workers or way.elsewhere else cores),
        new_maps / figures["processor"],
        figures["selection"],
        figures["read"],
        figures["parent"],
        figures["worker"],
    )
    shown = (
        f"{value:>9.{places}f}" for value, places in zip(values, COLUMNS.values(), strict=True)
    )
    return " ".join([f"{way.name:9}", *shown])


def compare(folder: Path, shards: int, maps: int) -> None:
    """Run all three ways on growing parts of the shards, and print the table."""
    made = folder / "made"
    started = time.monotonic()
    for number in range(shards + 1):
        make_shard(str(made), number, maps)
    print(f"{(shards + 1) * maps} maps made in {time.monotonic() - started:.0f} s")
    print(" ".join([f"{'way':9}", *(f"{name:>9}" for name in COLUMNS)]))
    with scheduler_elsewhere(folder) as (address, processes):
        ways = [
            Way("threads", 0, {}, []),
            Way("processes", WORKERS, {}, []),
            Way("elsewhere", 0, {SCHEDULER: address}, processes),
        ]
        for count in (shards // 5, shards // 2, shards):
            found = []
            for way in ways:
                root = fresh_root(made, folder / f"{way.name}-{count}")
                figures = measured(way, root, count, maps)
                print(line(way, count * maps, figures, count * maps), flush=True)
                found.append(results(root))
            assert found[0] == found[1] == found[2], "the three ways differ"
        found = []
        for way in ways:  # one shard more
            root = str(folder / f"{way.name}-{shards}")
            figures = measured(way, root, shards + 1, maps)
            print(line(way, (shards + 1) * maps, figures, maps), flush=True)
            found.append(results(root))
        assert found[0] == found[1] == found[2], "the three ways differ"
        anew = fresh_root(made, folder / "anew")
        figures = measured(ways[0], anew, shards + 1, maps)
        assert found[0].items() >= results(anew).items(), "merging gives another selection"
        print(f"the last selection from all tables: {figures['selection']:.2f} s; all identical")


def main() -> None:
    """Compare the three ways, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=50, help="shards, 5 or more")
    parser.add_argument("--maps", type=int, default=1000, help="maps in a shard")
    parser.add_argument("--folder", help="where to keep what is made; a temporary one if not given")
    parser.add_argument("--aggregate", help=argparse.SUPPRESS)  # root; for the processes measured
    parser.add_argument("--workers", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.aggregate:
        aggregate(options.aggregate, options.shards, options.maps, options.workers)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        compare(Path(folder), options.shards, options.maps)


if __name__ == "__main__":
    main()
