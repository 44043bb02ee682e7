"""Kill a run at random moments, again and again, and compare what it ends with.

The whole pipeline runs twice over the built-in street scenes: once left alone, once killed with
SIGKILL at least `--kills` times at random moments. Both must end with the same bytes, and a unit
that has its manifest must never be attempted again. Prints a report in Markdown; status 1 if
anything differs.

    python -m benchmarks.soak --kills 100
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tqdm import tqdm

from diffmining_core.images.street_scenes import write_dataset
from diffmining_core.store.ledger import read_manifests, stages
from diffmining_core.store.roots import open_root

OPTIONS = {
    "size": 64, "finetune-steps": 240, "finetune-batch": 4, "draws": 40, "k": 4, "top": 40,
    "shard-rows": 12, "before-shards": 2, "device": "cpu", "checkpoint-every": 10,
    "held-out": 0, "preview-every": 0,
}  # fmt: skip
"""A run of a few minutes in some fifty units."""

STARTING = 7.0
"""Seconds that the command needs before it computes, on two cores."""

EARLY = 0.2
"""Share of the kills that come before it computes."""


@dataclass(frozen=True)
class Result:
    """What a root holds: sha256 by file by unit, and the seconds that each unit took."""

    files: dict[str, dict[str, str]]
    seconds: dict[str, float]

    def share(self, units: Iterable[str]) -> float:
        """The share of the work that has gone into these units."""
        return sum(self.seconds[unit] for unit in units) / sum(self.seconds.values())


@dataclass
class Killed:
    """What became of the run that was killed."""

    kills: int = 0
    stages: Counter[str] = field(default_factory=Counter)
    """How often the newest unit published at a kill was of this stage."""
    beaten: list[str] = field(default_factory=list)
    """Units attempted again although they had their manifest."""
    seconds: float = 0.0


def main() -> None:
    """Run both and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=40, help="per country, of five")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        folder = Path(scratch)
        write_dataset(folder / "scenes", arguments.images, arguments.seed)
        with prefect_server(folder):
            started = time.monotonic()
            alone = folder / "alone"
            subprocess.run(
                command(folder / "scenes", alone),
                check=True,
                stdout=(out := log(folder)),
                stderr=out,
            )
            undisturbed = time.monotonic() - started
            expected = results(alone)
            killed = kill_and_resume(folder, expected, arguments.kills, arguments.seed)
        found = results(folder / "killed")
    same = found.files == expected.files
    ok = killed.kills >= arguments.kills and same and not killed.beaten
    print_report(arguments.kills, expected, found, killed, undisturbed)
    sys.exit(0 if ok else 1)


def kill_and_resume(folder: Path, expected: Result, kills: int, seed: int) -> Killed:
    """Start the run and kill it until it has been killed often enough; then let it end."""
    root, rng, outcome = folder / "killed", random.Random(seed), Killed()
    settled: dict[str, set[str]] = {}
    started = time.monotonic()
    with tqdm(total=kills, desc="soak", unit=" kills") as bar:
        while outcome.kills < kills:
            # Short lives while the run is ahead of the kills, so that it does not end before them.
            ahead = expected.share(settled) > 0.8 * outcome.kills / kills
            life = STARTING + rng.uniform(0, 1 if ahead else 4)
            if rng.random() < EARLY:
                life = rng.uniform(0.3, STARTING)
            process = subprocess.Popen(
                command(folder / "scenes", root), stdout=(out := log(folder)), stderr=out
            )
            try:
                process.wait(life)
                break  # it was done
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
            outcome.kills += 1
            bar.update()
            outcome.beaten += settle(root, settled, outcome)
    subprocess.run(
        command(folder / "scenes", root), check=True, stdout=(out := log(folder)), stderr=out
    )
    outcome.beaten += settle(root, settled, outcome)
    outcome.seconds = time.monotonic() - started
    return outcome


def settle(root: Path, settled: dict[str, set[str]], outcome: Killed) -> list[str]:
    """Note the attempts of units published by now; returns the units that got another since."""
    done = sorted((root / "manifests").glob("*/[!.]*.json"), key=lambda path: path.stat().st_mtime)
    outcome.stages[done[-1].parent.name if done else "nothing"] += 1
    beaten = []
    for manifest in done:
        unit = f"{manifest.parent.name}/{manifest.stem}"
        attempts = {path.name for path in (root / unit).glob("attempt-*")}
        if attempts - settled.setdefault(unit, attempts):
            beaten.append(unit)
    return beaten


def results(root: Path) -> Result:
    """All published units."""
    opened = open_root(str(root))
    manifests = [found for stage in stages(opened) for found in read_manifests(opened, stage)]
    return Result(
        {
            manifest.unit: {name: record["sha256"] for name, record in manifest.files.items()}
            for manifest in manifests
        },
        {manifest.unit: manifest.seconds for manifest in manifests},
    )


def command(dataset: Path, root: Path) -> list[str]:
    """The run that is killed and the one that is not, but for their root."""
    options = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
    given = ["--dataset", str(dataset), "--root", str(root), *options]
    return [sys.executable, "-m", "flows", "mine", *given]


def log(folder: Path) -> IO[bytes]:
    """Where the output of all processes goes."""
    return (folder / "runs.log").open("ab")


@contextmanager
def prefect_server(folder: Path) -> Iterator[None]:
    """A Prefect server of the soak's own: runs that are killed could not end theirs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["PREFECT_HOME"] = str(folder / "prefect")
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    words = ["-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, *words, "--no-services"], stdout=(out := log(folder)), stderr=out
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{os.environ['PREFECT_API_URL']}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield
    finally:
        server.terminate()
        server.wait()


def print_report(
    wanted: int, expected: Result, found: Result, killed: Killed, undisturbed: float
) -> None:
    """The numbers of both runs."""
    differing = sorted(
        unit
        for unit in expected.files.keys() | found.files.keys()
        if expected.files.get(unit) != found.files.get(unit)
    )
    files = sum(len(of_unit) for of_unit in expected.files.values())
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n")
    print("| | |\n|---|---|")
    print(f"| kills (SIGKILL) wanted, done | {wanted}, {killed.kills} |")
    print(f"| units, files | {len(expected.files)}, {files} |")
    print(f"| units whose bytes differ from the undisturbed run's | {len(differing)} |")
    print(f"| units attempted again after their manifest was there | {len(killed.beaten)} |")
    print(f"| seconds undisturbed, and with all kills | {undisturbed:.0f}, {killed.seconds:.0f} |")
    print("\nNewest unit at a kill: " + ", ".join(
        f"{stage} {count}" for stage, count in killed.stages.most_common()))  # fmt: skip
    for unit in differing + killed.beaten:
        print(f"- {unit}")


if __name__ == "__main__":
    main()
