"""The weights that are trained, all of a UNet's or a LoRA's: their average, their merging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffmining_core.finetuning.options import FinetuneOptions
from diffmining_core.models.files import LORA_FILE
from diffmining_core.models.pipelines import Pipeline

LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]

Weights = dict[str, torch.Tensor]


def trainable(unet: Any, options: FinetuneOptions) -> dict[str, torch.nn.Parameter]:
    """The UNet's parameters that are to be trained, by name; adds a LoRA where one is asked for."""
    if options.lora_rank:
        from peft import LoraConfig

        with torch.random.fork_rng():
            torch.manual_seed(options.seed)  # peft draws the LoRA's first weights globally
            unet.add_adapter(
                LoraConfig(
                    r=options.lora_rank,
                    lora_alpha=options.lora_rank,
                    init_lora_weights="gaussian",
                    target_modules=LORA_TARGETS,
                )
            )
    else:
        unet.requires_grad_(True)
    return {name: p for name, p in unet.named_parameters() if p.requires_grad}


class MovingAverage:
    """Exponential moving average of weights: decay × old + (1 - decay) × new after each step.

    While few steps are done the decay is (1 + n) / (10 + n) where that is less, so that the first
    weights, which are the base model's, are soon forgotten.
    """

    def __init__(self, trained: Mapping[str, torch.nn.Parameter], decay: float) -> None:
        self.trained, self.decay = trained, decay
        self.weights: Weights = {name: p.detach().clone() for name, p in trained.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.weights.items():
            average.lerp_(self.trained[name].detach(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average in the place of the weights for a while."""
        own = {name: p.data for name, p in self.trained.items()}
        self.put()
        try:
            yield
        finally:
            for name, parameter in self.trained.items():
                parameter.data = own[name]

    def put(self) -> None:
        """Put the average in the place of the weights, to stay."""
        for name, parameter in self.trained.items():
            parameter.data = self.weights[name]


def put_weights(unet: Any, weights: Mapping[str, torch.Tensor]) -> None:
    """Set some of a UNet's weights by name."""
    parameters = dict(unet.named_parameters())
    for name, value in weights.items():
        parameters[name].data.copy_(value)


def save_lora(unet: Any, folder: Path) -> None:
    """Write the LoRA by itself to `folder`, as diffusers' `load_lora_weights` reads it."""
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=get_peft_model_state_dict(unet),
        weight_name=LORA_FILE,
        safe_serialization=True,
    )


@torch.no_grad()
def merged(unet: Any) -> Any:
    """A UNet that does the same without LoRA layers; this one itself where it has none."""
    from peft.tuners.lora import LoraLayer

    layers = {name: m for name, m in unet.named_modules() if isinstance(m, LoraLayer)}
    if not layers:
        return unet
    state = {
        name.replace(".base_layer", ""): value
        for name, value in unet.state_dict().items()
        if ".lora_" not in name
    }
    for name, layer in layers.items():
        (adapter,) = layer.active_adapters
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(adapter)
    other = type(unet).from_config(unet.config)
    other.load_state_dict(state)
    return other


def save_merged(pipeline: Pipeline, folder: Path) -> None:
    """Write the whole pipeline, a LoRA merged into its UNet, as a diffusers folder."""
    own = pipeline.unet
    pipeline.unet = merged(own)
    pipeline.save(folder)
    pipeline.unet = own
