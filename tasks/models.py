"""Which model a task uses, as a small reference, and the one pipeline a process holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from diffmining_core.errors import InputError
from diffmining_core.models.fetching import first_line
from diffmining_core.models.files import ModelSource, find_model, model_digest
from diffmining_core.store.ledger import finished, local_folder
from diffmining_core.store.roots import open_root
from tasks.gpus import own_gpu

if TYPE_CHECKING:
    from diffmining_core.models.pipelines import Pipeline


@dataclass(frozen=True)
class ModelReference:
    """A model by its source, or, where `finetuned` names a unit of the root, by that unit.

    `digest` identifies the weights and enters every key of work done with them. A finetuned
    model's `source` is what it was made from; its files are those under `folder` in the unit.
    """

    source: ModelSource
    digest: str
    finetuned: str | None = None
    folder: str = "model"

    @classmethod
    def from_json(cls, model: Mapping[str, Any]) -> ModelReference:
        """A model as `dataclasses.asdict` and JSON left it."""
        return cls(**{**model, "source": ModelSource(**model["source"])})

    @property
    def name(self) -> str:
        """What a person calls it."""
        return str(self.source)

    @property
    def stage(self) -> str:
        """What tells the models of one run apart."""
        if self.finetuned is None:
            return "not finetuned"
        return "finetuned" if self.folder == "model" else f"finetuned, {self.folder}"


@dataclass(frozen=True)
class Device:
    """Where and in which precision a model runs."""

    name: str
    dtype: str


def base_model(source: ModelSource | str) -> ModelReference:
    """The reference of a model that is not of this root; a string is its name alone."""
    files = find_model(source)
    return ModelReference(files.source, model_digest(files))


def choose_device(device: str, precision: str = "auto") -> Device:
    """`auto` is a free CUDA device where there is one, else the CPU; float16 there, float32 here.

    Not bfloat16, whose rounding changes more of a label's top patches (docs/models.md). InputError
    if this machine has no such device. Ask only when there is work: torch's import is what a rerun
    with nothing to do saves.
    """
    import torch

    if device == "auto":
        device = f"cuda:{own_gpu()}" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA fails by an assertion
        raise InputError(
            f"The device {device!r} cannot be used ({first_line(error)}); give 'auto', 'cpu', or a "
            "CUDA device that this machine has."
        ) from error
    if precision == "auto":
        precision = "float16" if device.startswith("cuda") else "float32"
    return Device(device, precision)


@lru_cache(maxsize=1)
def loaded(root: str, model: ModelReference, device: Device) -> Pipeline:
    """The pipeline, loaded once per process and replaced when another is asked for."""
    import torch

    from diffmining_core.models.pipelines import load_pipeline

    source = model.source
    if model.finetuned is None:
        _check_same_weights(model)
    else:
        opened = open_root(root)
        manifest = finished(opened, "finetune", model.finetuned)
        # It was saved whole, with the text encoder it was trained with.
        source = ModelSource(str(local_folder(opened, manifest, model.folder)))
    return load_pipeline(source, device.name, getattr(torch, device.dtype))


def _check_same_weights(model: ModelReference) -> None:
    """InputError where the model's name means other weights here than where the run was planned."""
    if (here := model_digest(find_model(model.source))) != model.digest:
        raise InputError(
            f"Model {model.name} should have the digest {model.digest[:12]}, as where this run was "
            f"planned, but on this machine it has {here[:12]}; name a revision (ID@REVISION) or a "
            "folder that both can read."
        )
