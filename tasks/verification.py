"""Read all results of a root again before a run, or take all of them back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from diffmining_core.store.ledger import CorruptFileError, published, retract, stages
from diffmining_core.store.roots import open_root
from diffmining_core.store.verification import damaged_files, holdings
from tasks.progress import Progress
from tasks.units import stage_task

THREADS = 8
"""Units taken back at a time."""


@stage_task("verify")
def verify(root: str) -> list[CorruptFileError]:
    """An error about each unit that is damaged: the first of its files that is."""
    opened = open_root(root)
    held = holdings(opened)
    damaged = {(one.stage, one.key): one for one in reversed(held.damage)}
    with Progress("verify", held.bytes, "bytes") as progress:
        for one in damaged_files(opened, held.files, progress.advance):
            damaged.setdefault((one.stage, one.key), one)
    return [CorruptFileError(one.sentence, one.stage, one.key) for one in damaged.values()]


@stage_task("retract")
def retract_all(root: str) -> None:
    """Take back all that is published, so that a run makes everything anew."""
    opened = open_root(root)
    units = [(stage, key) for stage in stages(opened) for key in published(opened, stage)]
    with Progress("retract", len(units), "units") as progress, ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda unit: retract(opened, *unit), units):
            progress.advance()
