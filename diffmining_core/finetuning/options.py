"""How to finetune: what decides the weights, and what only decides how they come about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from diffmining_core.errors import InputError
from diffmining_core.models.prompts import PROMPT_OPTIONS


@dataclass(frozen=True)
class FinetuneOptions:
    """What decides the weights, beside images, base model and prompts; the paper's are default."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Images per optimizer step, over all processes and micro-batches."""
    learning_rate: float = 1e-4
    """AdamW's peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Constant, or warm-up over 5 % of the steps and then half a cosine down to zero."""
    null_share: float = 0.05
    """Share of all images that are trained on with the null prompt."""
    lora_rank: int = 0
    """Rank of a LoRA on the attention projections; 0 trains all weights."""
    size: int = 512
    """Shorter side of the images, and side of the square that is trained on, in pixels."""
    crop: Literal["random", "none"] = "random"
    """A square at a random place of each image; or none: the images are square."""
    sampling: Literal["natural", "balanced"] = "natural"
    """Each image as often as any other, or each label as often as any other."""
    ema_decay: float = 0.0
    """Of an exponential moving average of the weights, which is then the model; 0 for none."""
    held_out: int = 0
    """Images that are never trained on, so that the loss on them shows overfitting."""
    snapshots: tuple[int, ...] = ()
    """Steps after which the model is also kept."""
    seed: int = 42

    def __post_init__(self) -> None:
        if not 0 <= self.ema_decay < 1:
            raise InputError(
                f"The decay of the average of weights must be at least 0 and below 1, but is "
                f"{self.ema_decay}; 0.999 is usual, 0 is none."
            )
        outside = [step for step in self.snapshots if not 0 < step <= self.steps]
        if outside:
            raise InputError(
                f"Snapshots can be kept after steps 1 to {self.steps}, but {outside[0]} is asked "
                "for; give other steps, or train for longer."
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> FinetuneOptions:
        """From a stage's options, in which the prompts lie beside these fields."""
        given = {name: value for name, value in options.items() if name not in PROMPT_OPTIONS}
        return cls(**{**given, "snapshots": tuple(given.get("snapshots", ()))})

    def as_options(self) -> dict[str, Any]:
        """The fields as JSON."""
        return {**asdict(self), "snapshots": list(self.snapshots)}

    @property
    def side(self) -> int:
        """Pixels of the square that is trained on: `size` down to a multiple of 8."""
        return self.size - self.size % 8

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of one step."""
        if self.schedule == "constant":
            return self.learning_rate
        warm_up = min(1.0, (step + 1) / (0.05 * self.steps))
        return self.learning_rate * warm_up * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class FinetuneRunning:
    """What changes how a model comes about, but not which: its last digits at most."""

    micro_batch: int = 0
    """Images that a process has in the UNet at once; 0 for its whole share of the batch."""
    gradient_checkpointing: bool = False
    """Forget activations and compute them again: a third more work, a fraction of the memory."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the arithmetic; weights stay float32. auto: bfloat16 on CUDA, float32 on the CPU."""
    processes: int = 1
    """Each takes a share of every batch, and its own GPU where the device is CUDA."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    checkpoints_kept: int = 1
    """Checkpoints that are kept, the newest ones."""
    preview_every: int = 0
    """Steps between grids of generated images; 0 for none."""
    previews_per_label: int = 4
    """Images generated of each label."""
    evaluate_every: int = 500
    """Steps between measurements of the loss on held-out images."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("micro_batch", "preview_every") else 1
            if isinstance(value, int) and not isinstance(value, bool) and value < least:
                raise InputError(f"{field.name} must be at least {least}, but is {value}.")
