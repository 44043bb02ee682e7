"""When the UNet is compiled, and what happens where it cannot be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from diffmining_core.models.fetching import first_line

logger = logging.getLogger(__name__)

COMPILE_ROWS = 200_000
"""Rows of one latent shape that repay the minute or so that compiling takes."""


class Compiled:
    """For which latent shapes the UNet is compiled.

    Compiling takes a minute or so for each shape, so that only those are chosen that are met often
    enough (`COMPILE_ROWS`); on CUDA the compiled UNet is replayed as a CUDA graph.
    """

    def __init__(self, backend: str | Callable[..., Any] | None) -> None:
        """backend: of torch.compile, None where nothing is ever compiled."""
        self.backend = backend
        self.shapes: set[tuple[int, ...]] = set()
        self._compiled: Callable[..., torch.Tensor] | None = None

    def plan(self, latent_shape: tuple[int, ...], rows: int) -> None:
        """So many rows of latents of this shape (channels, h, w) are going to be predicted."""
        if self.backend is not None and rows >= COMPILE_ROWS:
            self.shapes.add(latent_shape)

    def wants(self, latent_shape: tuple[int, ...]) -> bool:
        """Whether rows of this shape go through the compiled UNet."""
        return latent_shape in self.shapes

    def run(self, function: Callable[..., torch.Tensor], *arguments: object) -> torch.Tensor:
        """`function(*arguments)`, compiled; as it is, from now on, where that cannot be done."""
        try:
            if self._compiled is None:
                mode = {"mode": "reduce-overhead"} if self.backend == "inductor" else {}
                options: dict[str, Any] = {"backend": self.backend, "dynamic": False, **mode}
                self._compiled = torch.compile(function, **options)
            return self._compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler that is missing or fails has many ways to say so
            cause = getattr(error, "inner_exception", error)  # of the backend itself
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from error
            logger.warning(
                "The UNet could not be compiled (%s); going on without", first_line(cause)
            )
            self.backend = None
            self.shapes.clear()
            return function(*arguments)
