"""Find a model's files, by hub id or folder, and say which model they are; needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from diffmining_core.errors import InputError

TINY = "tiny"
"""The id of the pipeline that ships with the package."""

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
# Full-precision safetensors and the configurations; variants (`*.fp16.safetensors`), pickles and
# the weights of other frameworks are left where they are.
_WANTED = re.compile(r"^(?!.*\.(fp16|non_ema|bf16)\.).*\.(json|txt|safetensors|model)$")
_TINY_FOLDER = Path(__file__).parent / "tiny"


def find_model(model: str) -> Path:
    """The local folder of the model that `model` names, downloading a hub id if need be."""
    folder = _TINY_FOLDER if model == TINY else Path(model).expanduser()
    if not folder.exists():
        folder = _download(model)
    missing = [name for name in COMPONENTS if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"Model {model} is not a Stable Diffusion pipeline: expected the folders "
            f"{', '.join(COMPONENTS)}, but {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing; give the folder that diffusers' "
            "save_pretrained wrote, or a hub id."
        )
    return folder


def model_digest(folder: Path) -> str:
    """sha256 over names and bytes of the component files that `load_pipeline` reads."""
    digest = hashlib.sha256()
    for name in COMPONENTS:
        for path in sorted((folder / name).iterdir()):
            if not _WANTED.match(path.name):
                continue
            with path.open("rb") as file:
                file_digest = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{name}/{path.name} {file_digest}\n".encode())
    return digest.hexdigest()


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = [f"{name}/*{ending}" for name in COMPONENTS for ending in (".json", ".txt")]
    wanted += [f"{name}/*.safetensors" for name in COMPONENTS] + ["model_index.json"]
    unwanted = ["*.fp16.*", "*.non_ema.*", "*.bf16.*"]
    try:
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=unwanted))
    except HFValidationError as error:
        raise InputError(
            f"There is no model folder {model}, and it is no hub id either; give a diffusers "
            f"folder, an id like stable-diffusion-v1-5/stable-diffusion-v1-5, or {TINY}."
        ) from error
    except Exception as error:
        # The hub client raises a dozen unrelated kinds for: no network, no such id, gated.
        raise InputError(
            f"Model {model} is no folder here and could not be had from the hub "
            f"({first_line(error)}); check the id and the network, or give a local folder "
            f"or {TINY}."
        ) from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, for a sentence of our own."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@dataclass(frozen=True)
class Geometry:
    """`size`: the image side in pixels a model was made for; `cell`: pixels per latent position."""

    size: int
    cell: int


def model_geometry(folder: Path) -> Geometry:
    """The geometry of the pipeline in `folder`; InputError if its configurations do not say."""
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text())
        vae = json.loads((folder / "vae" / "config.json").read_text())
        cell = 2 ** (len(vae["block_out_channels"]) - 1)
        return Geometry(unet["sample_size"] * cell, cell)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"Model {folder} should say its image size in unet/config.json (sample_size) and "
            f"vae/config.json (block_out_channels), but does not ({first_line(error)}); give a "
            "folder that diffusers' save_pretrained wrote, or a hub id."
        ) from error
