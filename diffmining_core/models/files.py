"""Find a model's files, by hub id, folder or URL, and say which model they are.

Needs no torch, except to see whether a LoRA fits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffmining_core.errors import InputError
from diffmining_core.models.fetching import fetched, first_line
from diffmining_core.models.schedulers import check_scheduler

TINY = "tiny"
"""The id of the pipeline that ships with the package."""

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
WEIGHTED = ("unet", "vae", "text_encoder")
LORA_FILE = "pytorch_lora_weights.safetensors"
HALF = "fp16"
"""The variant whose weights are read where there are no full ones."""

_VAE_SETTINGS = ("shift_factor", "latents_mean", "latents_std")
"""Settings of VAEs whose latents are shifted as well as scaled."""

_MORE_THAN_A_PROMPT = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Settings of UNets that need more inputs than latents, timestep and prompt."""

_TINY_FOLDER = Path(__file__).parent / "tiny"
_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
_SETTINGS = re.compile(r".*\.(json|txt|model)$")
_VARIANT_OR_INDEX = re.compile(r".*\.(fp16|non_ema|bf16|index)\.")


@dataclass(frozen=True)
class ModelSource:
    """What a user names: a pipeline, and what is changed of it."""

    name: str
    """`tiny`, a hub id (`ID` or `ID@REVISION`), a local folder or an fsspec URL."""
    text_encoder: str | None = None
    """A CLIP model whose text tower and tokenizer replace the pipeline's; named like a pipeline."""
    lora: str | None = None
    """LoRA weights merged into the pipeline at load: a file, or a folder or repository with one."""

    def __str__(self) -> str:
        changes = [
            f" with the {what} {name}"
            for what, name in (("text encoder", self.text_encoder), ("LoRA", self.lora))
            if name
        ]
        return self.name + " and".join(changes)


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie: the local folder of each component, and the LoRA's file."""

    source: ModelSource
    folders: Mapping[str, Path]
    lora: Path | None = None

    def names(self, component: str) -> list[str]:
        """The names of the files that loading the component reads, in its folder."""
        there = [path.name for path in self.folders[component].iterdir() if path.is_file()]
        names = chosen_weights(there)[1] if component in WEIGHTED else []
        if self.source.text_encoder and component == "tokenizer":
            settings = [name for name in there if name in _TOKENIZER_FILES]
        elif self.source.text_encoder and component == "text_encoder":
            settings = [name for name in there if name == "config.json"]
        else:
            settings = [name for name in there if _is_settings(name)]
        return sorted({*names, *settings})

    def variant(self, component: str) -> str | None:
        """The variant of its weights: `fp16` where there are no others."""
        return chosen_weights(path.name for path in self.folders[component].iterdir())[0]

    @property
    def lora_name(self) -> str:
        """What messages call the LoRA: its file, and where it was asked for."""
        assert self.lora is not None
        asked = str(self.source.lora)
        return asked if asked.endswith(self.lora.name) else f"{asked} ({self.lora.name})"

    def config(self, component: str) -> dict[str, Any]:
        """A component's configuration; InputError if it cannot be read."""
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        try:
            found: dict[str, Any] = json.loads((self.folders[component] / name).read_text())
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"The {component} of model {self.source} cannot be loaded: its {name} cannot be "
                f"read ({first_line(error)}); give a folder that diffusers' save_pretrained wrote."
            ) from error
        if component == "text_encoder":  # of a whole CLIP model
            found = {**found, **found.get("text_config", {})}
        return found


def find_model(source: ModelSource | str) -> ModelFiles:
    """The local files of a model, copied from the hub or a URL if need be.

    InputError if something of it is not there, cannot be read without unpickling, or does not fit
    together.
    """
    source = ModelSource(source) if isinstance(source, str) else source
    name = str(_TINY_FOLDER) if source.name == TINY else source.name
    folder = fetched(name, "Model", pipeline_files)
    folders = {component: folder / component for component in COMPONENTS}
    if source.text_encoder:
        tower = fetched(source.text_encoder, "Text encoder", clip_files)
        folders["text_encoder"] = folders["tokenizer"] = tower
    _check_folders(source, folders)
    lora = _lora_file(source.lora) if source.lora else None
    files = ModelFiles(source, folders, lora)
    for component in WEIGHTED:
        _check_weights(files, component)
    _check_tokenizer(files)
    _check_shape(files)
    check_scheduler(files.config("scheduler"), str(source))
    if lora:
        status = lora.stat()
        unet = json.dumps(files.config("unet"))
        _check_lora(lora, status.st_size, status.st_mtime_ns, files.lora_name, unet)
    return files


def model_digest(model: ModelFiles | Path) -> str:
    """sha256 over names and bytes of the files that `load_pipeline` reads, wherever they lie.

    `model` may also be the folder of a pipeline as it was saved.
    """
    files = find_model(str(model)) if isinstance(model, Path) else model
    digest = hashlib.sha256()
    for component in COMPONENTS:
        for name in files.names(component):
            digest.update(
                f"{component}/{name} {_digest(files.folders[component] / name)}\n".encode()
            )
    if files.lora:
        digest.update(f"lora at its own scale {_digest(files.lora)}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Geometry:
    """`size`: the image side in pixels a model was made for; `cell`: pixels per latent position."""

    size: int
    cell: int


def model_geometry(files: ModelFiles) -> Geometry:
    """The geometry of a pipeline; InputError if its configurations do not say."""
    unet, vae = files.config("unet"), files.config("vae")
    try:
        cell = 2 ** (len(vae["block_out_channels"]) - 1)
        return Geometry(int(unet["sample_size"]) * cell, cell)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"Model {files.source} should say its image size in unet/config.json (sample_size) "
            f"and vae/config.json (block_out_channels), but does not ({first_line(error)}); give a "
            "folder that diffusers' save_pretrained wrote, or a hub id."
        ) from error


def pipeline_files(names: Iterable[str]) -> list[str]:
    """Of all files of a repository those of a pipeline's components, one set of weights each."""
    everything = list(names)
    wanted = [name for name in everything if name == "model_index.json"]
    for component in COMPONENTS:
        start = f"{component}/"
        inner = [name.removeprefix(start) for name in everything if name.startswith(start)]
        chosen = [name for name in inner if "/" not in name and _is_settings(name)]
        chosen += chosen_weights(inner)[1] if component in WEIGHTED else []
        wanted += [start + name for name in chosen]
    return wanted


def clip_files(names: Iterable[str]) -> list[str]:
    """Of all files of a CLIP model's repository those of its text tower and tokenizer."""
    everything = list(names)
    settings = {"config.json", *_TOKENIZER_FILES}
    return [name for name in everything if name in settings] + chosen_weights(everything)[1]


def lora_files(names: Iterable[str]) -> list[str]:
    """Of all files of a LoRA's repository the one with the weights; none if there are several."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if LORA_FILE in found:
        return [LORA_FILE]
    return found if len(found) == 1 else []


def chosen_weights(names: Iterable[str]) -> tuple[str | None, list[str]]:
    """Variant and files of the safetensors weights to read among a component's files.

    The full ones, in one file or in numbered ones with their index; else the `fp16` variant.
    """
    there = set(names)
    for variant in (None, HALF):
        infix = f".{variant}" if variant else ""
        for stem in ("diffusion_pytorch_model", "model"):
            if (single := f"{stem}{infix}.safetensors") in there:
                return variant, [single]
            if (index := f"{stem}.safetensors.index{infix}.json") in there:
                # diffusers puts the variant before the number, transformers behind.
                numbered = re.compile(
                    rf"{stem}{infix}-\d+-of-\d+\.safetensors|{stem}-\d+-of-\d+{infix}\.safetensors"
                )
                return variant, [index, *sorted(filter(numbered.fullmatch, there))]
    return None, []


def _is_settings(name: str) -> bool:
    return bool(_SETTINGS.match(name)) and not _VARIANT_OR_INDEX.match(name)


def _lora_file(name: str) -> Path:
    found = fetched(name, "LoRA", lora_files)
    if found.is_file() and found.suffix == ".safetensors":
        return found
    names = lora_files(path.name for path in found.iterdir()) if found.is_dir() else []
    if not names:
        raise InputError(
            f"LoRA {name} should be one safetensors file, or a folder or repository with "
            f"{LORA_FILE} or with a single one, but is not; give the file itself."
        )
    return found / names[0]


def _check_folders(source: ModelSource, folders: Mapping[str, Path]) -> None:
    missing = [name for name in COMPONENTS if not folders[name].is_dir()]
    if missing:
        raise InputError(
            f"Model {source} is not a Stable Diffusion pipeline: expected the folders "
            f"{', '.join(COMPONENTS)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; give the folder that diffusers' "
            "save_pretrained wrote, or a hub id."
        )


def _check_weights(files: ModelFiles, component: str) -> None:
    folder = files.folders[component]
    _, names = chosen_weights(path.name for path in folder.iterdir())
    of = f"The {component} of model {files.source}"
    if not names:
        raise InputError(
            f"{of} should have its weights as safetensors, but has none, and pickles (.bin, .ckpt) "
            "are never read, as they can run any code; give a revision with safetensors "
            "(ID@REVISION; some repositories have one as a pull request, refs/pr/N), or save it "
            "by save_pretrained(..., safe_serialization=True)."
        )
    if names[0].endswith(".json"):
        wanted = set(json.loads((folder / names[0]).read_text())["weight_map"].values())
        if lost := sorted(name for name in wanted if not (folder / name).is_file()):
            raise InputError(
                f"{of} needs the {len(wanted)} files that {names[0]} lists, but {', '.join(lost)} "
                f"{'is' if len(lost) == 1 else 'are'} missing in {folder}; fetch it again."
            )


def _check_tokenizer(files: ModelFiles) -> None:
    folder = files.folders["tokenizer"]
    if (folder / "tokenizer.json").is_file():
        return
    if not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise InputError(
            f"The tokenizer of model {files.source} should have tokenizer.json, or vocab.json and "
            f"merges.txt, but {folder} has neither; a text encoder's tokenizer lies in its folder."
        )


def _check_shape(files: ModelFiles) -> None:
    """Refuse what is not shaped like Stable Diffusion, or whose parts do not fit."""
    unet, vae, text = (files.config(name) for name in WEIGHTED)
    channels, latent = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if channels != latent:
        raise InputError(
            f"The UNet of model {files.source} should take the {latent} channels of its VAE's "
            f"latents, but takes {channels}; give a text-to-image model, not one that inpaints or "
            "edits."
        )
    if (made := unet.get("out_channels", 4)) != channels:
        raise InputError(
            f"The UNet of model {files.source} should predict the {channels} channels that it "
            f"takes, but predicts {made}; give a model shaped like Stable Diffusion 1.x or 2.x."
        )
    if asked := [unet[name] for name in _MORE_THAN_A_PROMPT if unet.get(name)]:
        raise InputError(
            f"The UNet of model {files.source} asks for more than a prompt ({asked[0]}); give a "
            "model shaped like Stable Diffusion 1.x or 2.x."
        )
    if moved := [name for name in _VAE_SETTINGS if vae.get(name) is not None]:
        raise InputError(
            f"The VAE of model {files.source} should only scale its latents, but has {moved[0]} "
            f"{vae[moved[0]]} in its config.json; give a model shaped like Stable Diffusion 1.x or "
            "2.x."
        )
    if text.get("model_type", "clip_text_model") not in ("clip", "clip_text_model"):
        raise InputError(
            f"The text encoder of model {files.source} should be CLIP's, but is of the kind "
            f"{text['model_type']!r}; give a CLIP model."
        )
    widths = unet.get("cross_attention_dim", 1280)
    width = text.get("hidden_size", 512)
    if any(wanted != width for wanted in (widths if isinstance(widths, list) else [widths])):
        keep = (
            ", or keep the model's own by --text-encoder own" if files.source.text_encoder else ""
        )
        raise InputError(
            f"The text encoder of model {files.source} should give the {widths} numbers per token "
            f"that its UNet attends to, but gives {width}; give a text encoder of that width{keep}."
        )


@lru_cache(maxsize=16)  # a run asks for its model often
def _check_lora(path: Path, _size: int, _mtime_ns: int, name: str, unet: str) -> None:
    from diffmining_core.models.lora import check_lora_file  # brings torch along

    check_lora_file(path, name, json.loads(unet))


def _digest(path: Path) -> str:
    status = path.stat()
    return _digest_as_it_is(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)  # gigabytes, which a run asks for when it starts and when it loads them
def _digest_as_it_is(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
