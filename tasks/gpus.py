"""One GPU per process: each takes one of its machine that no other process holds."""

from __future__ import annotations

import fcntl
import logging
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO

FOLDER = Path(tempfile.gettempdir()) / "diffmining-gpus"
"""Of the lock files, one for each GPU; every user of the machine may take part."""

logger = logging.getLogger(__name__)

_held: list[IO[bytes]] = []
"""Open for as long as this process lives: the kernel lets go of a lock when its holder dies."""


@cache
def own_gpu() -> int:
    """The number of the GPU that this process uses, the same each time it asks."""
    import torch

    devices = range(torch.cuda.device_count())
    # By name and not by number, which CUDA_VISIBLE_DEVICES changes from process to process.
    names = [str(torch.cuda.get_device_properties(device).uuid) for device in devices]
    if (free := take_free(names, FOLDER)) is not None:
        return free
    logger.warning(
        "Each of the %d GPUs is held by another process; the first is shared", len(names)
    )
    return 0


def take_free(names: Sequence[str], folder: Path) -> int | None:
    """Hold the first of these GPUs that nobody holds, until this process ends; None if all are."""
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        path = folder / f"{name}.lock"
        path.touch()
        lock = path.open("rb")  # a reader's lock file serves, whoever made it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        _held.append(lock)
        return number
    return None
