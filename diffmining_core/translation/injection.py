"""What Plug-and-Play (Tumanyan et al. 2023) carries over from a source image while it is redrawn.

Rows of a batch take the queries and keys of self-attention, which hold the layout, and the residual
features of one layer, which hold the shapes, from the row of their source, by forward hooks. The
layers are those of Stable Diffusion 1.x by their place; a smaller model has fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers import UNet2DConditionModel

FEATURE_BLOCK, FEATURE_RESNET = 1, 1
"""The residual features are what leaves `conv2` of this resnet of this up block."""
FIRST_ATTENTION = 1
"""Self-attention is shared from this attention of that block on, and in all blocks behind it."""


@contextmanager
def injected(
    unet: UNet2DConditionModel, source_of_row: torch.Tensor, attention: bool
) -> Iterator[None]:
    """Inside, row i of a batch has the features of row `source_of_row[i]` (int64 [rows]).

    attention: its self-attention's queries and keys too. A source is its own source.
    """

    def take(_module: torch.nn.Module, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        return output[source_of_row]

    layers = [feature_layer(unet)]
    if attention:
        layers += [layer for one in attention_layers(unet) for layer in one]
    handles = [layer.register_forward_hook(take) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feature_layer(unet: UNet2DConditionModel) -> torch.nn.Module:
    """The layer whose output [rows, channels, h, w] is carried over."""
    layer: torch.nn.Module = unet.up_blocks[FEATURE_BLOCK].resnets[FEATURE_RESNET].conv2
    return layer


def attention_layers(
    unet: UNet2DConditionModel,
) -> list[tuple[torch.nn.Module, torch.nn.Module]]:
    """The projections to queries and to keys [rows, positions, d] of each self-attention."""
    first, *behind = unet.up_blocks[FEATURE_BLOCK:]
    blocks = [first.attentions[FIRST_ATTENTION:], *(block.attentions for block in behind)]
    return [
        (transformer.attn1.to_q, transformer.attn1.to_k)
        for attentions in blocks
        for attention in attentions
        for transformer in attention.transformer_blocks
    ]
