"""The forward of a Stable Diffusion UNet, in the parts that many forwards share and the rest.

diffusers' own blocks in diffusers' own order (`UNet2DConditionModel.forward`), but that all rows
share one timestep, and that the blocks' transformers are handed the keys and values of the prompts
and then go a shorter way to the same result.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch.nn import functional as F

KeysAndValues: TypeAlias = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Of each cross-attention in order: keys and values [rows, heads, tokens, d]."""

WIDENED_ON_CPU = 2048
"""Positions that a thread takes through a feed-forward at once, which makes them eight times as
wide: more would not stay in its cache."""


class PreparedTransformer(Transformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """A transformer of the UNet that may be handed keys and values; else what diffusers has.

    With them it copies its rows once and not thrice, adds and multiplies in place, and so leaves a
    core's cache less often: this is where a CPU spends its time.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | KeysAndValues | None = None,
        **others: Any,
    ) -> Any:
        """`hidden_states` [rows, C, h, w]; a tuple of the same, as the blocks ask for it."""
        if not isinstance(encoder_hidden_states, tuple):
            return super().forward(hidden_states, encoder_hidden_states, **others)
        x = self.norm(hidden_states).flatten(2).transpose(1, 2)
        x = F.linear(x, self.proj_in.weight.flatten(1), self.proj_in.bias)
        for block in self.transformer_blocks:
            x = _transformed(block, x, encoder_hidden_states)
        x = F.linear(x, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return (x.transpose(1, 2).reshape(hidden_states.shape) + hidden_states,)


def _transformed(
    block: BasicTransformerBlock, x: torch.Tensor, keys_values: KeysAndValues
) -> torch.Tensor:
    """`x` [rows, positions, C] through self-attention, cross-attention and the feed-forward."""
    itself, prompt = block.attn1, block.attn2
    of_itself = block.norm1(x)
    key, value = (split_heads(itself, to(of_itself)) for to in (itself.to_k, itself.to_v))
    x = _attended(itself, of_itself, key, value).add_(x)
    x = _attended(prompt, block.norm2(x), *keys_values[prompt.place]).add_(x)
    geglu, _, linear = block.ff.net
    at_once = len(x) if x.is_cuda else max(1, WIDENED_ON_CPU // x.shape[1])
    for rows in torch.split(x, at_once):
        widened, gate = geglu.proj(block.norm3(rows)).chunk(2, dim=-1)
        rows.add_(linear(widened.mul_(F.gelu(gate))))
    return x


def _attended(
    attention: Attention, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    query = split_heads(attention, attention.to_q(x))
    attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    projected: torch.Tensor = attention.to_out[0](attended)
    return projected


def cross_attentions(unet: UNet2DConditionModel) -> list[Attention]:
    """Those layers of the UNet that look at the prompt, in a fixed order."""
    return [module for name, module in unet.named_modules() if name.endswith(".attn2")]


def prepare(unet: UNet2DConditionModel) -> None:
    """Let the UNet's blocks take keys and values; `unet(…)` itself goes on as before."""
    for module in unet.modules():
        if type(module) is Transformer2DModel:
            module.__class__ = PreparedTransformer  # the same parts, with a forward of their own
    for place, attention in enumerate(cross_attentions(unet)):
        attention.place = place
    channels_last(unet)


def channels_last(unet: UNet2DConditionModel) -> None:
    """On a GPU the UNet's weights lie with their channels last from now on.

    As convolutions want them there; what goes through them comes to lie so by itself.
    """
    weight = unet.conv_in.weight
    if weight.is_cuda and not weight.is_contiguous(memory_format=torch.channels_last):
        unet.to(memory_format=torch.channels_last)


def keys_and_values(unet: UNet2DConditionModel, prompt_embeds: torch.Tensor) -> KeysAndValues:
    """What every cross-attention takes from prompts [prompts, tokens, d]."""
    return tuple(
        (
            split_heads(layer, layer.to_k(prompt_embeds)),
            split_heads(layer, layer.to_v(prompt_embeds)),
        )
        for layer in cross_attentions(unet)
    )


def split_heads(attention: Attention, projected: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, heads · d] as [rows, heads, tokens, d]."""
    rows, tokens, _ = projected.shape
    return projected.view(rows, tokens, attention.heads, -1).transpose(1, 2)


def embedded_timesteps(unet: UNet2DConditionModel, timesteps: torch.Tensor) -> torch.Tensor:
    """What the UNet's blocks take of `timesteps` int64 [n]: [n, d] in the UNet's precision."""
    dtype = unet.conv_in.weight.dtype  # unet.dtype looks through all modules
    embedded: torch.Tensor = unet.time_embedding(unet.time_proj(timesteps).to(dtype))
    return embedded


def forward(
    unet: UNet2DConditionModel,
    x: torch.Tensor,
    time: torch.Tensor,
    keys_values: KeysAndValues,
    last_up_block: int | None = None,
) -> torch.Tensor:
    """One forward of `x` [rows, channels, h, w] through the UNet, all at one timestep.

    time: [1, d]. With `last_up_block` the output of that up block in place of the UNet's own.
    """
    x = unet.conv_in(x)
    skipped = [x]
    for block in unet.down_blocks:
        x, outputs = block(x, time, **_prompted(block, keys_values))
        skipped += outputs
    x = unet.mid_block(x, time, **_prompted(unet.mid_block, keys_values))
    for place, block in enumerate(unet.up_blocks):
        inputs = tuple(skipped[-len(block.resnets) :])
        del skipped[-len(block.resnets) :]
        # A latent of uneven size does not come back to it by doubling.
        size = skipped[-1].shape[2:] if skipped else None
        x = block(x, inputs, time, upsample_size=size, **_prompted(block, keys_values))
        if place == last_up_block:
            return x
    said: torch.Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
    return said


def _prompted(block: torch.nn.Module, keys_values: KeysAndValues) -> dict[str, KeysAndValues]:
    """For the blocks that take a prompt."""
    return (
        {"encoder_hidden_states": keys_values}
        if getattr(block, "has_cross_attention", False)
        else {}
    )
