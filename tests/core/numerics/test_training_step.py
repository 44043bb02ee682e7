"""The training loop against a loop in float64 written out here: loss, clipping, AdamW, average."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from diffmining_core.finetuning.images import Described, TrainingImage
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.training import Kept, Trained, Work, train
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.models.tiny.train_base import build
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root

STEPS = 3
OPTIONS = FinetuneOptions(steps=STEPS, batch_size=3, learning_rate=1e-3, null_share=0.3, size=64)

Weights = dict[str, torch.Tensor]


class Drawn:
    """Four images of noise, wider than high; the last has two labels."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.pixels = [rng.integers(0, 256, (64, 88, 3), np.uint8) for _ in range(4)]
        self.labels = [("a",), ("b",), ("a",), ("a", "b")]

    def __len__(self) -> int:
        return len(self.pixels)

    def describe(self, index: int) -> Described:
        return Described(str(index), self.labels[index])

    def load(self, index: int) -> TrainingImage:
        return TrainingImage(self.pixels[index], self.labels[index], None, str(index))


class Recorded:
    """What the UNet was trained on, as it was given: latents, noise, timesteps, embeddings."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.given: list[tuple[torch.Tensor, ...]] = []
        self.embeds: list[torch.Tensor] = []
        add_noise = pipeline.add_noise

        def note(*arguments: torch.Tensor) -> torch.Tensor:
            self.given.append(tuple(tensor.clone() for tensor in arguments))
            return add_noise(*arguments)

        pipeline.add_noise = note  # type: ignore[method-assign,assignment] # to see, not to change
        pipeline.unet.register_forward_pre_hook(self._look, with_kwargs=True)

    def _look(self, _module: Any, _arguments: Any, named: dict[str, torch.Tensor]) -> None:
        self.embeds.append(named["encoder_hidden_states"].clone())

    def steps(self) -> list[tuple[torch.Tensor, ...]]:
        """Latents, noise, timesteps and embeddings of each step, its pieces together."""
        pieces = len(self.given) // STEPS
        whole = [(*given, embeds) for given, embeds in zip(self.given, self.embeds, strict=True)]
        return [
            tuple(map(torch.cat, zip(*whole[i * pieces : (i + 1) * pieces], strict=True)))
            for i in range(STEPS)
        ]


def model(prediction: str) -> Pipeline:
    pipeline = build(0)
    pipeline.scheduler = DDPMScheduler.from_config(
        pipeline.scheduler.config, prediction_type=prediction
    )
    return pipeline


def trained(
    pipeline: Pipeline, options: FinetuneOptions, running: FinetuneRunning, scratch: Path
) -> Trained:
    root = open_root(f"memory://{uuid4().hex}")
    kept = Kept(*(RootCheckpoints(root, name) for name in ("checkpoints", "snapshots", "previews")))
    return train(
        Work(pipeline, Drawn(), PromptTemplate(), ["a", "b"], options, running, kept, scratch)
    )


def in_float64(
    prediction: str, options: FinetuneOptions, steps: list[tuple[torch.Tensor, ...]]
) -> tuple[Weights, list[float]]:
    """The same training, from the definitions: the weights it ends with, and the losses."""
    unet = build(0).unet.double().train().requires_grad_(True)
    weights = dict(unet.named_parameters())
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha_bar = torch.cumprod(1 - betas, 0)
    first, second = ({n: torch.zeros_like(p) for n, p in weights.items()} for _ in range(2))
    average = {name: p.detach().clone() for name, p in weights.items()}
    losses = []
    for step, (latents, noise, timesteps, embeds) in enumerate(steps):
        x0, noise = latents.double(), noise.double()
        signal = alpha_bar[timesteps].sqrt().view(-1, 1, 1, 1)
        sigma = (1 - alpha_bar[timesteps]).sqrt().view(-1, 1, 1, 1)
        said = unet(
            signal * x0 + sigma * noise, timesteps, encoder_hidden_states=embeds.double()
        ).sample
        target = noise if prediction == "epsilon" else signal * noise - sigma * x0
        loss = ((said - target) ** 2).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
        rate = options.learning_rate
        if options.schedule == "cosine":
            rate *= min(1, (step + 1) / (0.05 * STEPS)) * (1 + np.cos(np.pi * step / STEPS)) / 2
        n = step + 1
        with torch.no_grad():
            for (name, p), gradient in zip(weights.items(), gradients, strict=True):
                g = gradient * min(1.0, 1.0 / float(norm))
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g**2
                towards = first[name] / (1 - 0.9**n)
                scale = (second[name] / (1 - 0.999**n)).sqrt() + 1e-8
                p.copy_(p * (1 - rate * 0.01) - rate * towards / scale)
                decay = min(options.ema_decay, (1 + step) / (10 + step))
                average[name] = decay * average[name] + (1 - decay) * p
        losses.append(loss.item())
    return average, losses


def distance(one: Weights, other: Weights) -> float:
    squared = [(one[name].double() - other[name].double()).square().sum() for name in one]
    return torch.stack(squared).sum().sqrt().item()


@pytest.mark.parametrize(
    ("prediction", "changes", "running"),
    [
        ("epsilon", {}, FinetuneRunning()),
        (
            "v_prediction",
            {"schedule": "cosine", "ema_decay": 0.9},
            FinetuneRunning(micro_batch=2, gradient_checkpointing=True),
        ),
    ],
)
def test_three_steps_are_those_of_the_definitions_in_float64(
    prediction: str, changes: dict[str, Any], running: FinetuneRunning, tmp_path: Path
) -> None:
    options = replace(OPTIONS, **changes)
    pipeline = model(prediction)
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    recorded = Recorded(pipeline)
    history = trained(pipeline, options, running, tmp_path).history
    steps = recorded.steps()
    assert [len(latents) for latents, *_ in steps] == [3] * STEPS

    expected, losses = in_float64(prediction, options, steps)
    np.testing.assert_allclose(history.losses, losses, rtol=2e-6)
    found = dict(pipeline.unet.named_parameters())
    # Adam divides each gradient by its own size, and so makes much of the last bits of those that
    # are next to nothing: the way as a whole agrees to 1.4e-4. Without the decay of the weights,
    # the least of the terms, it would be 9e-4.
    assert distance(found, expected) < 4e-4 * distance(expected, before)


def test_bfloat16_goes_nearly_the_same_way(tmp_path: Path) -> None:
    """Weights and sums stay float32, the network's arithmetic has 8 bits."""
    ways, losses = [], []
    precisions: list[Literal["float32", "bfloat16"]] = ["float32", "bfloat16"]
    for precision in precisions:
        pipeline = model("epsilon")
        before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
        scratch = tmp_path / precision
        scratch.mkdir()
        running = FinetuneRunning(precision=precision)
        losses.append(trained(pipeline, OPTIONS, running, scratch).history.losses)
        after = dict(pipeline.unet.named_parameters())
        assert all(p.dtype == torch.float32 for p in after.values())
        ways.append(torch.cat([(after[name] - before[name]).flatten() for name in before]))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    assert torch.cosine_similarity(ways[0], ways[1], dim=0) > 0.97  # 0.99 measured
