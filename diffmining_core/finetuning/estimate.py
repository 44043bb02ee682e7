"""What a finetuning will cost, before it is begun: memory and time, estimated or measured.

The UNet is built from its configuration on PyTorch's meta device, where tensors have shapes and no
content: what its forward pass computes and what it keeps for the backward pass is counted there in
a second, whatever its size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from diffmining_core.finetuning.losses import BINS
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.previews import DDIM_STEPS, LABELS_SHOWN
from diffmining_core.finetuning.sampling import LEAST_TRAINED_PER_HELD_OUT
from diffmining_core.finetuning.training import accelerated, chosen_precision
from diffmining_core.finetuning.weights import trainable
from diffmining_core.models.quiet import quiet_libraries

ASSUMED_FLOPS = 0.4 * 790e12
"""Of one GPU where nothing is measured: an H200's measured bf16 products a second, 40 % reached."""

MEASURED_SECONDS = 20.0
"""A step that will take longer is not tried out."""

CONTEXT_BYTES = 1 << 30
"""What CUDA and its libraries take for themselves."""


@dataclass(frozen=True)
class UNetCost:
    """Of one image through a UNet: parameters, FLOPs (2 per multiplication) and bytes kept.

    checkpointed_bytes: what is kept with gradient checkpointing, and the most that one block needs
    while it is computed again.
    """

    parameters: int
    trained: int
    flops: float
    kept_bytes: int
    checkpointed_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a finetuning will cost on each of its processes; memory in bytes by what it is for."""

    images: int
    epochs: float
    memory: Mapping[str, int]
    step_flops: float
    seconds: float
    measured: bool
    """Whether seconds come from steps tried on this device, or from an assumed speed."""


def estimate(
    configs: Mapping[str, Mapping[str, Any]],
    images: int,
    options: FinetuneOptions,
    running: FinetuneRunning,
    device: str,
) -> Estimate:
    """The cost of finetuning the pipeline with these configurations of its components.

    All activations of a process's images at once are counted, in the precision of the arithmetic.
    """
    where = torch.device(device)
    precision = chosen_precision(where, running.precision)
    cost = unet_cost(configs, options, getattr(torch, precision))
    share = -(-options.batch_size // running.processes)
    at_once = min(running.micro_batch or share, share)
    activations = cost.checkpointed_bytes if running.gradient_checkpointing else cost.kept_bytes
    memory = {
        "weights": 4 * (cost.parameters + frozen_parameters(configs)),
        "weights in the arithmetic's precision": 0
        if precision == "float32"
        else 2 * cost.parameters,
        "gradients": 4 * cost.trained,
        "AdamW": 8 * cost.trained,
        "moving average": 4 * cost.trained if options.ema_decay else 0,
        "activations": at_once * activations,
        "the device itself": CONTEXT_BYTES if where.type == "cuda" else 0,
    }
    passes = 4 if running.gradient_checkpointing else 3
    encodings = options.batch_size * options.steps if options.crop == "random" else images
    step_flops = options.batch_size * passes * cost.flops
    flops = options.steps * step_flops + encodings * encoder_flops(configs, options.side)
    speed = measured_speed(configs, options, running, at_once, at_once * passes * cost.flops, where)
    return Estimate(
        images=images,
        epochs=options.steps * options.batch_size / images,
        memory={name: size for name, size in memory.items() if size},
        step_flops=step_flops,
        seconds=flops / (speed or ASSUMED_FLOPS) / running.processes,
        measured=speed is not None,
    )


def finetune_forwards(
    options: FinetuneOptions, running: FinetuneRunning, images: int, labels: int
) -> int:
    """Images that go through the UNet: those of the steps, of losses held out, of previews.

    At most so many, where of the last image of some label none can be held out.
    """
    held_out = min(options.held_out, images // LEAST_TRAINED_PER_HELD_OUT)
    looks = 1 + -(-options.steps // running.evaluate_every)
    previews = options.steps // running.preview_every if running.preview_every else 0
    pictures = min(labels, LABELS_SHOWN) * running.previews_per_label
    return (
        options.steps * options.batch_size
        + looks * 2 * held_out * BINS
        + previews * pictures * 2 * DDIM_STEPS
    )


def unet_cost(
    configs: Mapping[str, Mapping[str, Any]], options: FinetuneOptions, dtype: torch.dtype
) -> UNetCost:
    """What one image costs in the UNet, with attention that keeps no matrix of all pairs."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(configs["unet"]))
    parameters = sum(p.numel() for p in unet.parameters())
    trained = sum(p.numel() for p in trainable(unet, options).values())
    with quiet_libraries():
        unet.to(dtype).train()
    latents, timesteps, embeds = unet_inputs(configs, options, 1, torch.device("meta"), dtype)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        unet(latents, timesteps, encoder_hidden_states=embeds)
    kept = _KeptTensors(unet)
    for module in unet.modules():
        if isinstance(module, (ResnetBlock2D, BasicTransformerBlock)):
            module.register_forward_pre_hook(kept.enter)
            module.register_forward_hook(kept.leave)
    with kept.counted(), _FlashAttentionMode():
        unet(latents.requires_grad_(), timesteps, encoder_hidden_states=embeds)
    return UNetCost(
        parameters=parameters,
        trained=trained,
        flops=float(flops.get_total_flops()),
        kept_bytes=kept.total,
        checkpointed_bytes=kept.total - kept.within + kept.entering + kept.largest,
    )


def unet_inputs(
    configs: Mapping[str, Mapping[str, Any]],
    options: FinetuneOptions,
    images: int,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and prompt embeddings of the shapes that training has."""
    cells = options.side // 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    text = configs["text_encoder"]
    tokens, width = text["max_position_embeddings"], configs["unet"]["cross_attention_dim"]
    channels = configs["unet"]["in_channels"]
    return (
        torch.zeros(images, channels, cells, cells, device=device, dtype=dtype),
        torch.zeros(images, device=device, dtype=torch.int64),
        torch.zeros(images, tokens, width, device=device, dtype=dtype),
    )


def frozen_parameters(configs: Mapping[str, Mapping[str, Any]]) -> int:
    """Parameters of VAE and text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        parts = (
            AutoencoderKL.from_config(dict(configs["vae"])),
            CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        )
    return sum(p.numel() for part in parts for p in part.parameters())


def encoder_flops(configs: Mapping[str, Mapping[str, Any]], side: int) -> float:
    """FLOPs of one image through the VAE's encoder."""
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(dict(configs["vae"]))
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            vae.encode(torch.zeros(1, 3, side, side))
    return float(flops.get_total_flops())


def measured_speed(
    configs: Mapping[str, Mapping[str, Any]],
    options: FinetuneOptions,
    running: FinetuneRunning,
    images: int,
    flops: float,
    device: torch.device,
) -> float | None:
    """FLOPs a second of forward and backward passes on the device; None if they took too long.

    The UNet has random weights: its speed does not depend on them.
    """
    if flops / product_speed(device) > MEASURED_SECONDS:
        return None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(dict(configs["unet"])).to(device).train()
    trainable(unet, options)
    if running.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    inputs = unet_inputs(configs, options, images, device, torch.float32)
    seconds = []
    for _ in range(3):  # the first one warms up
        started = time.monotonic()
        with accelerated(device, running.precision) as accelerator, accelerator.autocast():
            said = unet(inputs[0], inputs[1], encoder_hidden_states=inputs[2]).sample
            said.float().square().mean().backward()
        _wait(device)
        seconds.append(time.monotonic() - started)
    return flops / min(seconds[1:])


def product_speed(device: torch.device) -> float:
    """FLOPs a second of a matrix product in the device's usual precision."""
    side, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (512, torch.float32)
    factor = torch.ones(side, side, device=device, dtype=dtype)
    factor @ factor
    _wait(device)
    started = time.monotonic()
    for _ in range(5):
        factor @ factor
    _wait(device)
    return 5 * 2 * side**3 / (time.monotonic() - started)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _KeptTensors:
    """Counts what a forward pass keeps for the backward one, each storage once.

    within: what the blocks that gradient checkpointing forgets keep, `entering` their inputs, which
    it keeps in place of that; largest: the most of one block.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self.total = self.within = self.entering = self.largest = 0
        # Tensors stay alive here, so that no address comes twice; weights are counted elsewhere.
        self._seen = {_address(weight): weight.data for weight in unet.parameters()}
        self._at_entry = 0

    def counted(self) -> Any:
        return torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def enter(self, _module: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        self._at_entry = self.total
        self.entering += arguments[0].nbytes

    def leave(self, _module: torch.nn.Module, _arguments: object, _output: object) -> None:
        block = self.total - self._at_entry
        self.within += block
        self.largest = max(self.largest, block)

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        if _address(tensor) not in self._seen:
            self._seen[_address(tensor)] = tensor
            self.total += tensor.untyped_storage().nbytes()
        return tensor


def _address(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


class _FlashAttentionMode(TorchFunctionMode):
    """Attention as GPUs compute it: on the meta device PyTorch would keep all pairs' weights."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _FlashAttention.apply(*args[:3])  # type: ignore[no-untyped-call] # torch leaves it so
        return function(*args, **(kwargs or {}))


class _FlashAttention(torch.autograd.Function):
    """Keeps its inputs and its output; is never computed."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> torch.Tensor:
        output = torch.empty_like(query)
        context.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> Any:
        raise NotImplementedError("its cost is estimated, not its gradient")
