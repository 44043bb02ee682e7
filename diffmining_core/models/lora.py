"""LoRA weights, merged into a pipeline when it is loaded."""

from __future__ import annotations

from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffmining_core.errors import InputError
from diffmining_core.models.fetching import first_line

UNET = "unet."


def merge_lora_file(unet: UNet2DConditionModel, path: Path, name: str) -> None:
    """Add the LoRA in `path` to the weights of `unet`, which should be float32.

    Reads what diffusers and kohya's scripts write. `name` is the LoRA's, for the sentences:
    InputError if it is for another model, or for the text encoder too.
    """
    try:
        weights = load_file(path)
        if any("dora_scale" in key for key in weights):  # diffusers would drop them
            raise ValueError("it is a DoRA")
        state, alphas = StableDiffusionPipeline.lora_state_dict(weights)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise InputError(
            f"LoRA {name} cannot be read ({first_line(error)}); give a safetensors file in the "
            "format of diffusers or of kohya's scripts."
        ) from error
    if not any(key.startswith(UNET) and "lora" in key for key in state):
        raise _does_not_fit(name, "it has none of a LoRA's weights for a UNet")
    if foreign := sorted({key.partition(".")[0] for key in state if not key.startswith(UNET)}):
        raise InputError(
            f"LoRA {name} should change the UNet alone, but has weights for {', '.join(foreign)}; "
            "give one trained without them, as typicality compares prompts under one text encoder."
        )
    try:
        unet.load_lora_adapter(dict(state), prefix="unet", network_alphas=alphas)
    except RuntimeError as error:  # its first line says nothing, and one follows for each layer
        raise _does_not_fit(name, "its layers have other shapes") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise _does_not_fit(name, first_line(error)) from error
    expected = len({_layer(key) for key in state if not key.endswith(".alpha")})
    found = sum(hasattr(module, "lora_A") for module in unet.modules())
    if found != expected:
        raise _does_not_fit(name, f"{found} of its {expected} layers are in the UNet")
    unet.fuse_lora()
    unet.unload_lora()


def _layer(key: str) -> str:
    """The layer that a LoRA's weight changes, however its two factors are called."""
    for mark in (".lora_A.", ".lora_B.", ".lora.down.", ".lora.up.", "_lora.down.", "_lora.up."):
        if mark in key:
            return key.partition(mark)[0].replace(".processor", "")
    return key


def _does_not_fit(name: str, why: str) -> InputError:
    return InputError(
        f"LoRA {name} does not fit this model's UNet ({why}); give one that was trained on it."
    )
