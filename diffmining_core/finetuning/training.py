"""The training loop (paper, section 3.1), for one process or several.

Comes in: a pipeline, images with labels, options. Goes out: the same pipeline with its UNet
trained, and the history of its losses. Each step's images, crops, noise, timesteps and dropped
labels follow from (seed, step) alone, so a run killed and resumed from a checkpoint ends with the
same weights as one left alone. Every process draws the whole batch's random numbers and trains on
its share of the images; the gradient is that of the whole batch, and only the order of its sums
depends on processes and micro-batches.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file, save_file

from diffmining_core.errors import InputError
from diffmining_core.finetuning.batches import Batch, Batches, latent_shape
from diffmining_core.finetuning.evaluation import FixedDraws
from diffmining_core.finetuning.images import LabelledImages
from diffmining_core.finetuning.latents import LatentCache
from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.losses import (
    BINS,
    RISE_WINDOW,
    Evaluation,
    History,
    rising_since,
)
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.previews import preview
from diffmining_core.finetuning.sampling import Sampling
from diffmining_core.finetuning.weights import MovingAverage, Weights, trainable
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.unet import channels_last
from diffmining_core.store.checkpoints import RootCheckpoints

CHECKPOINT = "checkpoint.safetensors"
SNAPSHOT = "weights.safetensors"
PREVIEW = "preview.png"

DIVERGED = 3.0
"""Mean loss from which training has failed: a model that predicts nothing has about 1."""
DIVERGENCE_WINDOW = 20
"""Steps over which that mean is taken."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """What a run keeps: to go on after a crash, of its models on the way, and of its previews."""

    checkpoints: RootCheckpoints
    snapshots: RootCheckpoints
    previews: RootCheckpoints


@dataclass(frozen=True)
class Work:
    """What is trained on what; scratch is a folder that the processes of a training share."""

    pipeline: Pipeline
    images: LabelledImages
    prompts: PromptTemplate
    labels: Sequence[str]
    options: FinetuneOptions
    running: FinetuneRunning
    kept: Kept
    scratch: Path


@dataclass(frozen=True)
class Trained:
    """How a training went, which every process knows; a LoRA is still apart from the weights."""

    history: History
    in_charge: bool
    """Whether this is the process that speaks for all."""
    held_out_ids: list[str]
    precision: str
    images_per_second: float


def train(work: Work, listeners: Sequence[Listener] = ()) -> Trained:
    """Train the UNet in place; with a moving average its weights are that.

    InputError in words if the loss is no number any more or far above that of no model at all, or
    if the device's memory does not suffice.
    """
    try:
        with accelerated(work.pipeline.device, work.running.precision) as accelerator:
            return _Training(work, accelerator, listeners).run()
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"Finetuning on {work.pipeline.device} needs more memory than it has; take fewer "
            "images at once (--micro-batch), --gradient-checkpointing, or a LoRA (--lora-rank)."
        ) from error


def chosen_precision(device: torch.device, precision: str) -> str:
    """`auto` is bfloat16 on CUDA and float32 elsewhere; InputError for float16 elsewhere."""
    if precision == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    if precision == "float16" and device.type != "cuda":
        raise InputError(
            f"Training in float16 needs a CUDA device, but the device is {device.type}; use auto, "
            "float32 or bfloat16."
        )
    return precision


@contextmanager
def accelerated(device: torch.device, precision: str) -> Iterator[Accelerator]:
    """Accelerate for one training in this process.

    Its state is one per process, and the training before may have had another precision.
    """
    names = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield Accelerator(
            mixed_precision=names[chosen_precision(device, precision)],
            cpu=device.type == "cpu",
            device_placement=False,
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


class _Training:
    def __init__(self, work: Work, accelerator: Accelerator, listeners: Sequence[Listener]) -> None:
        self.work, self.options, self.running = work, work.options, work.running
        self.accelerator = accelerator
        self.pipeline, self.unet = work.pipeline, work.pipeline.unet
        self.listeners = listeners if accelerator.is_main_process else ()
        channels_last(self.unet)
        if accelerator.num_processes > self.options.batch_size:
            raise InputError(
                f"{accelerator.num_processes} processes cannot share a batch of "
                f"{self.options.batch_size} images; use fewer, or a larger batch."
            )
        if self.running.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.trained = trainable(self.unet, self.options)
        self.average = (
            MovingAverage(self.trained, self.options.ema_decay) if self.options.ema_decay else None
        )
        self.adam = torch.optim.AdamW(
            self.trained.values(),
            lr=self.options.learning_rate,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=1e-2,
        )
        self.history = History.of(self.options.steps)
        self.sampling = Sampling(work.images, self.options)
        shape = latent_shape(self.pipeline, self.options)
        self.batches = Batches(
            self.pipeline,
            work.images,
            work.prompts,
            self.options,
            self.sampling,
            LatentCache(work.scratch, shape),
        )
        self.held_out = FixedDraws(self.batches, self.sampling.held_out, work.prompts)
        self.seen = FixedDraws(self.batches, self.sampling.seen, work.prompts)
        self.seconds, self.images_done = 0.0, 0
        self.warned = False

    def run(self) -> Trained:
        first = self._restore()
        self.model, self.optimizer = self.accelerator.prepare(self.unet, self.adam)
        for listener in self.listeners:
            listener.started(first)
        self.unet.train()
        if first == 0:
            self._evaluate(0)
        for step in range(first, self.options.steps):
            started = time.monotonic()
            self._step(step)
            self.seconds += time.monotonic() - started
            self.images_done += self.options.batch_size
            for listener in self.listeners:
                listener.stepped(step, self.history, self.images_done / self.seconds)
            self._after(step + 1)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self.average:
            self.average.put()
        self.unet.disable_gradient_checkpointing()
        self.unet.requires_grad_(False).eval()
        self.batches.cache.close()
        for listener in self.listeners:
            listener.ended()
        return Trained(
            self.history,
            self.accelerator.is_main_process,
            self.sampling.held_out_ids,
            chosen_precision(self.pipeline.device, self.running.precision),
            round(self.images_done / self.seconds, 3) if self.seconds else 0.0,
        )

    def _step(self, step: int) -> None:
        batch = self.batches.at(step, self._share(self.options.batch_size))
        self.optimizer.zero_grad()
        losses = torch.zeros(self.options.batch_size, device=self.pipeline.device)
        losses[batch.places] = self._backward(batch)
        losses = self.accelerator.reduce(losses, "sum")
        mean = self.history.note(step, losses.cpu().numpy(), self._bins(batch.all_timesteps))
        self._check(step, mean)
        norm = self.accelerator.clip_grad_norm_(self.trained.values(), 1.0)
        if not torch.isfinite(norm) and self.accelerator.scaler is None:
            raise InputError(self._diverged(step, f"the gradient is {float(norm)}"))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.learning_rate_at(step)
        self.optimizer.step()
        if self.average:
            self.average.update(step)

    def _backward(self, batch: Batch) -> torch.Tensor:
        """The loss of each image of the batch's share; its gradient is added up on the way.

        Processes' gradients are averaged, hence the factor of how many there are.
        """
        losses = []
        share = len(batch.latents)
        at_once = self.running.micro_batch or share
        factor = self.accelerator.num_processes / self.options.batch_size
        for start in range(0, share, at_once):
            part = slice(start, start + at_once)
            last = start + at_once >= share
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                per_image = self._losses(batch, part)
                self.accelerator.backward(per_image.sum() * factor)
            losses.append(per_image.detach())
        return torch.cat(losses)

    def _losses(self, batch: Batch, part: slice) -> torch.Tensor:
        latents, noise = batch.latents[part], batch.noise[part]
        timesteps, embeds = batch.timesteps[part], batch.prompt_embeds[part]
        noisy = self.pipeline.add_noise(latents, noise, timesteps)
        with self.accelerator.autocast():
            prediction = self.model(noisy, timesteps, encoder_hidden_states=embeds).sample.float()
        target = self.pipeline.training_target(latents, noise, timesteps)
        losses: torch.Tensor = ((prediction - target) ** 2).mean((1, 2, 3))
        return losses

    def _predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, embeds: torch.Tensor
    ) -> torch.Tensor:
        """What the UNet says, outside the training: by one process alone."""
        with self.accelerator.autocast():
            said: torch.Tensor = self.unet(
                noisy, timesteps, encoder_hidden_states=embeds
            ).sample.float()
        return said

    def _share(self, total: int) -> slice:
        """This process's places among so many."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        return slice(rank * total // processes, (rank + 1) * total // processes)

    def _bins(self, timesteps: torch.Tensor) -> np.ndarray:
        return (timesteps * BINS // self.batches.timesteps).numpy()

    def _check(self, step: int, loss: float) -> None:
        """InputError if the loss says that training has failed; a rise is warned of, once."""
        if not np.isfinite(loss):
            raise InputError(self._diverged(step, f"the loss is {loss}"))
        recent = self.history.losses[max(0, step + 1 - DIVERGENCE_WINDOW) : step + 1]
        if len(recent) == DIVERGENCE_WINDOW and recent.mean() > DIVERGED:
            raise InputError(
                self._diverged(
                    step, f"the mean loss of {DIVERGENCE_WINDOW} steps is {recent.mean():.3g}"
                )
            )
        if (step + 1) % RISE_WINDOW == 0 and not self.warned:
            since = rising_since(self.history.losses[: step + 1])
            if since is not None:
                self.warned = True
                logger.warning(
                    "the training loss rises since step %d; if it goes on, stop and train with a "
                    "lower learning rate than %g",
                    since,
                    self.options.learning_rate,
                )

    def _diverged(self, step: int, what: str) -> str:
        return (
            f"Finetuning has failed at step {step + 1} of {self.options.steps}: {what}; train with "
            f"a lower learning rate than {self.options.learning_rate:g}, with --schedule cosine, "
            "or in float32 if it was float16 (the last checkpoint before it is kept)."
        )

    def _after(self, done: int) -> None:
        """What is due after so many steps; the checkpoint last, for it holds the losses."""
        running, last = self.running, done == self.options.steps
        if last or done % running.evaluate_every == 0:
            self._evaluate(done)
        if running.preview_every and done % running.preview_every == 0:
            self._preview(done)
        if done in self.options.snapshots and self.accelerator.is_main_process:
            with self._as_published():
                weights = {name: p.detach() for name, p in self.trained.items()}
                _keep(self.work.kept.snapshots, done, SNAPSHOT, weights)
        if not last and done % running.checkpoint_every == 0 and self.accelerator.is_main_process:
            _keep(self.work.kept.checkpoints, done, CHECKPOINT, self._state(done))

    @contextmanager
    def _as_published(self) -> Iterator[None]:
        """The model as it would be published now: not training, with the averaged weights."""
        self.unet.eval()
        with self.average.in_place() if self.average else nullcontext():
            yield
        self.unet.train()

    def _evaluate(self, done: int) -> None:
        if not self.held_out.images:
            return
        losses = []
        with self._as_published():
            for images in (self.held_out, self.seen):
                at_once = self.running.micro_batch or self.options.batch_size
                own = images.losses(self._predict, at_once, self._share(len(images.images)))
                losses.append(self.accelerator.reduce(own.to(self.pipeline.device), "sum"))
        held_out, seen = (part.cpu().numpy() for part in losses)
        self.history.evaluations.append(Evaluation(done, held_out, seen))
        for listener in self.listeners:
            listener.evaluated(self.history.evaluations[-1])

    def _preview(self, done: int) -> None:
        if not self.accelerator.is_main_process:
            return
        with self._as_published():
            png = preview(
                self.pipeline,
                self._predict,
                self.work.prompts,
                self.work.labels,
                self.options.side,
                self.running.previews_per_label,
                self.options.seed,
            )
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / PREVIEW).write_bytes(png)
            self.work.kept.previews.keep(done, Path(folder))
        for listener in self.listeners:
            listener.previewed(done, png)

    def _state(self, done: int) -> Weights:
        """All that the next step depends on, and the history."""
        tensors = {
            f"history/{name}": torch.from_numpy(values.copy())
            for name, values in self.history.to_arrays(done).items()
        }
        for name, parameter in self.trained.items():
            state = self.adam.state[parameter]
            tensors[f"weight/{name}"] = parameter.detach()
            tensors[f"exp_avg/{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq/{name}"] = state["exp_avg_sq"]
            tensors["adam_steps"] = state["step"]
            if self.average:
                tensors[f"average/{name}"] = self.average.weights[name]
        if self.accelerator.scaler is not None:
            scaler = self.accelerator.scaler.state_dict()
            tensors["scale"] = torch.tensor([scaler["scale"], scaler["_growth_tracker"]])
        return tensors

    def _restore(self) -> int:
        """Load the newest checkpoint, if there is one, and return the step to go on with.

        The first process fetches it for all: between two listings another run may keep a newer one.
        """
        folder = self.work.scratch / "restored"
        found: list[int | None] = [None]
        if self.accelerator.is_main_process:
            folder.mkdir(exist_ok=True)
            found = [self.work.kept.checkpoints.latest(folder)]
        (step,) = broadcast_object_list(found) if self.accelerator.num_processes > 1 else found
        if step is None:
            return 0
        tensors = load_file(folder / CHECKPOINT)
        self._set(tensors)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (folder / CHECKPOINT).unlink()
        return int(step)

    def _set(self, tensors: Weights) -> None:
        start = "history/"
        history = {
            name.removeprefix(start): value.numpy()
            for name, value in tensors.items()
            if name.startswith(start)
        }
        self.history.restore(history)
        for name, parameter in self.trained.items():
            parameter.data.copy_(tensors[f"weight/{name}"])
            self.adam.state[parameter] = {"step": tensors["adam_steps"].clone()} | {
                moment: torch.empty_like(parameter).copy_(tensors[f"{moment}/{name}"])
                for moment in ("exp_avg", "exp_avg_sq")
            }
            if self.average:
                self.average.weights[name].copy_(tensors[f"average/{name}"])
        if self.accelerator.scaler is not None:
            state = self.accelerator.scaler.state_dict()
            scale, tracker = tensors["scale"].tolist()
            self.accelerator.scaler.load_state_dict(
                {**state, "scale": scale, "_growth_tracker": int(tracker)}
            )


def _keep(checkpoints: RootCheckpoints, step: int, file: str, tensors: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, Path(folder) / file)
        checkpoints.keep(step, Path(folder))
