"""LoRA weights, merged into a pipeline when it is loaded.

In: a safetensors file and a UNet. Out: the UNet with the weights that diffusers' own
`load_lora_weights` and `fuse_lora` give. diffusers and peft read the file and choose the scale of
each layer; a file that they would partly drop or misread is refused.
"""

from __future__ import annotations

import logging
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_unet_state_dict_to_peft
from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from diffmining_core.errors import InputError
from diffmining_core.models.quiet import quiet_libraries

UNET = "unet."
ADAPTER = "merged"

_OTHER_KINDS = {
    "dora_scale": "it is a DoRA by kohya's scripts",  # diffusers would drop its magnitudes
    "hada_": "it is a LoHa",
    "lokr_": "it is a LoKr",
    ".lora_mid.": "it has Tucker factors",
}
"""Parts of key names -> why diffusers does not read the file as it was meant."""

_READ_SETTINGS = {
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
}
"""Settings in a file's header that give the layers it changes and their scales."""

_IDLE_SETTINGS = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "lora_dropout",
    "peft_version",
    "revision",
    "task_type",
}
"""Settings in a header that do not affect the merged weights."""

_PLAIN_STARTS = (True, False, None, "gaussian")
"""Values of `init_lora_weights` that leave the base's weights alone; others change these too."""


def check_lora_file(path: Path, name: str, unet_config: Mapping[str, Any]) -> None:
    """InputError if the LoRA in `path` cannot be merged into a UNet of this configuration.

    Needs none of the UNet's weights.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(unet_config))
    _add_adapter(unet, path, name)


def merge_lora_file(unet: UNet2DConditionModel, path: Path, name: str) -> None:
    """Add the LoRA in `path` to the weights of `unet`, which should be float32.

    `name` is the LoRA's, for the sentences: InputError if it cannot be merged.
    """
    _add_adapter(unet, path, name)
    try:
        unet.fuse_lora(safe_fusing=True)
    except ValueError as error:
        raise InputError(
            f"LoRA {name} makes weights of the UNet that are not finite; give a sound file."
        ) from error
    unet.unload_lora()


def _add_adapter(unet: UNet2DConditionModel, path: Path, name: str) -> None:
    """Put the LoRA's layers beside those of `unet`, or raise an InputError."""
    with _silent_libraries():
        state, alphas, header = _read(path, name)
        _check_keys(state, name)
        if header is not None:
            _check_header(header, alphas, name)
        try:
            StableDiffusionPipeline.load_lora_into_unet(
                state, alphas, unet, ADAPTER, low_cpu_mem_usage=True, metadata=header
            )
        except RuntimeError as error:  # its first line says nothing, and one follows for each layer
            raise _does_not_fit(name, "its layers have other shapes") from error
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise _does_not_fit(name, _short(error)) from error
    _check_complete(unet, state, name)
    if alphas:
        _check_scales(unet, alphas, name)


def _read(path: Path, name: str) -> tuple[dict[str, torch.Tensor], dict[str, float] | None, Any]:
    """diffusers' reading of a file: weights by diffusers' keys, kohya's alphas, its header."""
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
        for mark, kind in _OTHER_KINDS.items():
            if any(mark in key for key in keys):
                raise ValueError(kind)
        state, alphas, header = StableDiffusionPipeline.lora_state_dict(
            str(path), use_safetensors=True, return_lora_metadata=True
        )
    except (OSError, SafetensorError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"LoRA {name} cannot be read ({_short(error)}); give a safetensors file in the "
            "format of diffusers or of kohya's scripts."
        ) from error
    return state, alphas, header


def _check_keys(state: Mapping[str, torch.Tensor], name: str) -> None:
    """Refuse weights that diffusers would not load into the UNet."""
    if not any(key.startswith(UNET) and "lora" in key for key in state):
        raise _does_not_fit(name, "it has none of a LoRA's weights for a UNet")
    if foreign := sorted({key.partition(".")[0] for key in state if not key.startswith(UNET)}):
        raise InputError(
            f"LoRA {name} should change the UNet alone, but has weights for {', '.join(foreign)}; "
            "give one trained without them, as typicality compares prompts under one text encoder."
        )
    if unread := sorted(key for key in state if "lora" not in key):
        raise InputError(
            f"LoRA {name} has {len(unread)} weights that diffusers does not load, {unread[0]} the "
            "first; save it again in the format of diffusers or of kohya's scripts."
        )


def _check_header(header: Any, alphas: Mapping[str, float] | None, name: str) -> None:
    """Refuse settings that mean more than a scale: some change the base, or import a module."""
    if not isinstance(header, dict) or not any(key.startswith(UNET) for key in header):
        raise InputError(
            f"LoRA {name} should have settings for the UNet as lora_adapter_metadata in its "
            f"header, but has {textwrap.shorten(repr(header), 60)}; save it again with diffusers."
        )
    if alphas:
        raise InputError(
            f"LoRA {name} gives its scale twice, as lora_adapter_metadata in its header and as "
            "kohya's alphas; save it again with one of them."
        )
    defaults = LoraConfig().to_dict()
    for key, value in header.items():
        setting = key.removeprefix(UNET)
        if not key.startswith(UNET) or setting in _READ_SETTINGS | _IDLE_SETTINGS:
            continue
        plain = _PLAIN_STARTS if setting == "init_lora_weights" else (defaults.get(setting),)
        if value not in plain:
            raise InputError(
                f"LoRA {name} was trained with {setting} {textwrap.shorten(repr(value), 60)}, "
                "which cannot be merged; give a plain LoRA."
            )


def _check_complete(
    unet: UNet2DConditionModel, state: Mapping[str, torch.Tensor], name: str
) -> None:
    """Refuse a file with a weight that fits nowhere, or without one of a pair."""
    given = {key.removeprefix(UNET).removesuffix(".weight") for key in _peft_keys(state)}
    there = {
        key.replace(f".{ADAPTER}", "").removesuffix(".weight")
        for key in unet.state_dict()
        if f".{ADAPTER}" in key
    }
    if lost := sorted(given - there):
        raise _does_not_fit(name, f"{len(lost)} of its weights have no place, {lost[0]} the first")
    if lacking := sorted(there - given):
        raise _does_not_fit(name, f"it lacks {len(lacking)} weights, {lacking[0]} the first")


def _check_scales(unet: UNet2DConditionModel, alphas: Mapping[str, float], name: str) -> None:
    """Refuse a file by kohya's scripts where diffusers takes another alpha than a layer's own.

    Its loader matches the alphas of attention layers by names that peft does not know, and gives
    them the commonest alpha of the file.
    """
    own = {
        key.removeprefix(UNET).removesuffix(".alpha").partition(".lora_A")[0]: alpha
        for key, alpha in _peft_keys(alphas).items()
    }
    for layer, module in unet.named_modules():
        if ADAPTER not in getattr(module, "scaling", {}):
            continue
        rank, scale = module.r[ADAPTER], module.scaling[ADAPTER]
        alpha = own.get(layer, rank)
        if not math.isclose(scale, alpha / rank, rel_tol=1e-6):
            raise InputError(
                f"LoRA {name} has several alphas, and diffusers would merge {layer} at the scale "
                f"{scale:g} instead of {alpha / rank:g}; save it with one alpha for all layers, "
                "each layer's lora_up multiplied by what its own alpha differs by."
            )


def _peft_keys(named: Mapping[str, Any]) -> dict[str, Any]:
    """The same under the names that peft gives a LoRA's weights."""
    renamed: dict[str, Any] = convert_unet_state_dict_to_peft(dict(named))
    return renamed


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Without what diffusers and peft warn about or log: files are checked and refused here."""
    with quiet_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers.utils.logging.set_verbosity(logging.CRITICAL)
        yield


def _short(error: Exception) -> str:
    return textwrap.shorten(str(error), 160, placeholder=" …").rstrip(".") or type(error).__name__


def _does_not_fit(name: str, why: str) -> InputError:
    return InputError(
        f"LoRA {name} does not fit this model's UNet ({why}); give one that was trained on it."
    )
