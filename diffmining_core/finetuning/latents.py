"""Latents that were encoded once, kept in a file that the processes of a training share."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

logger = logging.getLogger(__name__)


class LatentCache:
    """Posterior mean and standard deviation of each image, float32 [channels, h, w], by index.

    They lie in a file, of which the operating system keeps in memory what memory is free: so no
    dataset is too large, and what is read is to the bit what was written. A full disk ends the
    keeping, not the training. Processes may write at once: an image counts once its mark is set,
    and each writes the same values.
    """

    def __init__(self, folder: Path, shape: tuple[int, ...]) -> None:
        self.shape = (2, *shape)
        self.bytes = 4 * int(np.prod(self.shape))
        flags = os.O_RDWR | os.O_CREAT
        self.latents = os.open(folder / "latents", flags, 0o600)
        self.marks = os.open(folder / "marks", flags, 0o600)
        self.full = False

    def get(self, index: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """What was put there, None if nothing was."""
        if os.pread(self.marks, 1, index) != b"1":
            return None
        data = os.pread(self.latents, self.bytes, index * self.bytes)
        mean, std = torch.from_numpy(np.frombuffer(data, np.float32).reshape(self.shape).copy())
        return mean, std

    def put(self, index: int, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Keep an image's posterior, if there is still room."""
        if self.full:
            return
        try:
            data = torch.stack([mean, std]).numpy().tobytes()
            written = os.pwrite(self.latents, data, index * self.bytes)
            if written == len(data):
                os.pwrite(self.marks, b"1", index)
        except OSError as error:
            self.full = True
            logger.warning("no more latents are kept on disk, others are encoded anew: %s", error)

    def close(self) -> None:
        """Close the files."""
        os.close(self.latents)
        os.close(self.marks)
