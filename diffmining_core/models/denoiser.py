"""The UNet as mining runs it: what many forwards share is computed once.

Comes in: a pipeline, the prompts and the timesteps of a piece of work. Goes out: predictions. The
keys and values that cross-attention takes from a prompt are computed once for each prompt, the
embedding of a timestep once for each timestep, and as many rows go through at once as the device
holds. On CUDA the blocks are compiled where a latent shape is met often enough to repay it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from diffmining_core.errors import InputError
from diffmining_core.models.fetching import first_line
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.unet import (
    KeysAndValues,
    embedded_timesteps,
    forward,
    keys_and_values,
    prepare,
)

logger = logging.getLogger(__name__)

POSITIONS_ON_CPU = 8192
"""Latent positions that a thread takes through the UNet at once: more would not stay in its cache.
32 rows of 16 × 16."""
POSITIONS_ON_GPU = 64 * 4096
"""The same on a GPU, where more make it no faster: 64 rows of 64 × 64."""
BYTES_PER_POSITION = 96 * 1024
"""Of GPU memory for activations of Stable Diffusion 1.5 in half precision, generously."""
FREE_SHARE = 0.8
"""Of the GPU memory that is free, that the rows are chosen to fill."""


class Denoiser:
    """Predicts the noise in rows of latents, each under a prompt of its own, at some timesteps."""

    def __init__(
        self,
        pipeline: Pipeline,
        prompt_embeds: torch.Tensor,
        prompt_of_row: torch.Tensor,
        timesteps: Sequence[int] | torch.Tensor,
        at_once: int | None = None,
        on_forwards: Callable[[int], None] = lambda forwards: None,
        whole: bool = False,
    ) -> None:
        """`prompt_embeds` [prompts, tokens, d], prompt_of_row int64 [rows], timesteps: integers.

        at_once: rows that go through the UNet together, by default what `rows_at_once` says;
        on_forwards hears how many went. whole: rows need one another and all go together, or
        torch.OutOfMemoryError is raised.
        """
        self.pipeline, self.at_once, self.on_forwards = pipeline, at_once, on_forwards
        self.whole = whole
        self.prompt_of_row = prompt_of_row.to(pipeline.device)
        self.timesteps = torch.as_tensor(timesteps, device=pipeline.device)
        prepare(pipeline.unet)
        with torch.inference_mode():
            self._keys_values = keys_and_values(pipeline.unet, prompt_embeds.to(pipeline.device))
            self._time = embedded_timesteps(pipeline.unet, self.timesteps)
        self._of_part: dict[_Part, KeysAndValues] = {}

    def predict_noise(self, noisy: torch.Tensor, at: int) -> torch.Tensor:
        """ε̂ float32 of `noisy` float32 [rows, channels, h, w] at the timestep in place `at`."""
        timesteps = self.timesteps[at].expand(len(noisy))
        return self.pipeline.as_noise(self._predict(noisy, at), noisy, timesteps)

    def activation(self, noisy: torch.Tensor, at: int, up_block: int) -> torch.Tensor:
        """The output float32 [rows, C, h', w'] of an up block; the blocks behind it never run."""
        return self._predict(noisy, at, up_block)

    @torch.inference_mode()
    def _predict(
        self, noisy: torch.Tensor, at: int, last_up_block: int | None = None
    ) -> torch.Tensor:
        """All rows, as many at once as fit; where memory runs out, half as many from then on."""
        rows, shape = len(noisy), tuple(noisy.shape[1:])
        done: list[torch.Tensor] = []
        start = 0
        while start < rows:
            at_once = rows if self.whole else rows_at_once(self.pipeline, shape, self.at_once)
            stop = min(start + at_once, rows)
            # Rows that need one another are tied by hooks, of which a compiled UNet knows nothing.
            compiled = last_up_block is None and not self.whole
            compiled = compiled and self.pipeline.compiled.wants(shape)
            # Rows that are made up keep the shapes few for which there is a compiled UNet.
            part = _Part(start, stop, at_once - (stop - start) if compiled else 0)
            try:
                output = self._run(noisy[start:stop], at, part, compiled, last_up_block)
            except torch.OutOfMemoryError as error:
                if self.whole:
                    raise
                self._of_part.clear()
                halve(self.pipeline, shape, stop - start + part.made_up, error)
                continue
            self.pipeline.count(stop - start)
            self.on_forwards(stop - start)
            # A copy always: what a CUDA graph wrote is overwritten when it runs again.
            done.append(output[: stop - start].to(torch.float32, copy=True))
            start = stop
        return torch.cat(done) if len(done) > 1 else done[0]

    def _run(
        self,
        noisy: torch.Tensor,
        at: int,
        part: _Part,
        compiled: bool,
        last_up_block: int | None,
    ) -> torch.Tensor:
        """What the UNet makes of one part of the rows, and behind it of those that are made up."""
        pipeline = self.pipeline
        if part not in self._of_part:
            prompts = self.prompt_of_row[part.start : part.stop]
            prompts = torch.cat([prompts, prompts[-1:].expand(part.made_up)])
            self._of_part[part] = tuple((k[prompts], v[prompts]) for k, v in self._keys_values)
        # A copy always: for tensors that were made in another way the UNet would be compiled anew.
        x = noisy.to(pipeline.dtype, copy=True)
        if part.made_up:
            x = torch.cat([x, x[-1:].expand(part.made_up, -1, -1, -1)])
        if pipeline.device.type == "cuda":
            x = x.contiguous(memory_format=torch.channels_last)
        time, keys_values = self._time[at : at + 1], self._of_part[part]
        if compiled:
            return pipeline.compiled.run(forward, pipeline.unet, x, time, keys_values)
        return forward(pipeline.unet, x, time, keys_values, last_up_block)


class _Part(NamedTuple):
    """Rows that go through the UNet together."""

    start: int
    stop: int
    made_up: int
    """So many more that repeat the last of them."""


def rows_at_once(
    pipeline: Pipeline, latent_shape: tuple[int, ...], wanted: int | None = None
) -> int:
    """How many rows of latents (channels, h, w) go through the UNet together, a power of two.

    On the CPU what stays in a core's cache; on a GPU what its free memory holds; or as many as are
    wanted. Fewer once memory has run out at this shape.
    """
    if wanted is None:
        if latent_shape not in pipeline.rows_at_once:
            pipeline.rows_at_once[latent_shape] = _estimated(pipeline, latent_shape)
        wanted = pipeline.rows_at_once[latent_shape]
    return min(wanted, pipeline.most_rows.get(latent_shape, wanted))


def _estimated(pipeline: Pipeline, latent_shape: tuple[int, ...]) -> int:
    fitting = POSITIONS_ON_CPU
    if pipeline.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(pipeline.device)
        bytes_per_position = BYTES_PER_POSITION * pipeline.dtype.itemsize / 2
        fitting = min(int(FREE_SHARE * free / bytes_per_position), POSITIONS_ON_GPU)
    positions = latent_shape[-2] * latent_shape[-1]
    return 1 << max(0, (fitting // positions).bit_length() - 1)


def halve(
    pipeline: Pipeline, latent_shape: tuple[int, ...], too_many: int, error: torch.OutOfMemoryError
) -> None:
    """Half as many rows at once from now on; InputError if it was a single one."""
    if too_many == 1:
        raise InputError(
            f"A single row of latents {latent_shape} does not fit into the memory of "
            f"{pipeline.device} ({first_line(error)}); take smaller images, or a device with more "
            "memory."
        ) from error
    half = too_many // 2
    pipeline.most_rows[latent_shape] = min(half, pipeline.most_rows.get(latent_shape, half))
    logger.warning(
        "%d rows of latents %s do not fit into the memory of %s; going on with %d at once",
        too_many,
        latent_shape,
        pipeline.device,
        half,
    )
    torch.cuda.empty_cache()  # does nothing where there is no CUDA
