"""What a run did: units, repairs, seconds per stage, UNet forwards; for its summary."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import get_run_logger

from diffmining_core.store.ledger import CorruptFileError, is_intact, retract
from diffmining_core.store.roots import open_root
from tasks.units import Done


class RunLedger:
    """What one run did so far."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.done: list[Done] = []
        self.met: set[str] = set()
        self.repaired: dict[str, str] = {}
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the seconds of one stage, over all passes, and say in the log that it begins."""
        get_run_logger().info("Stage %s", name.replace("_", " "))
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - started

    def repair(self, root: str, damaged: Iterable[CorruptFileError]) -> None:
        """Take damaged units back, so that the next pass makes them anew.

        A unit that is damaged again in the same run is raised: the storage itself is to be mended.
        """
        once_each = {f"{error.stage}/{error.key}": error for error in damaged}
        for unit, error in once_each.items():
            if unit in self.met:
                raise error
            self.met.add(unit)
            opened = open_root(root)
            if is_intact(opened, error.stage, error.key):
                get_run_logger().warning("%s was read wrongly once: %s", unit, error)
                continue
            self.repaired[unit] = str(error)
            get_run_logger().warning("%s is made anew: %s", unit, error)
            retract(opened, error.stage, error.key)

    def add(self, done: Iterable[Done]) -> list[Done]:
        """Note finished units."""
        finished = list(done)
        self.done += finished
        return finished

    def summary(self) -> dict[str, Any]:
        """Seconds, memory, units computed and UNet forwards of this run."""
        computed = Counter(unit.stage for unit in self.done if unit.computed)
        forwards = sum(u.counts.get("unet_forwards", 0) for u in self.done if u.computed)
        return {
            "seconds": round(time.monotonic() - self.started, 2),
            "stages": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "peak_memory_mb": peak_memory_mb(),
            "computed": dict(computed),
            "unet_forwards": forwards,
            "repaired": self.repaired,
        }


def peak_memory_mb() -> int:
    """The most memory this process has held, in MB (macOS counts bytes, Linux KiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / 1e6) if sys.platform == "darwin" else round(peak * 1024 / 1e6)
