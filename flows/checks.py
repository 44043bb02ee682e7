"""What is refused before anything is computed: in seconds, with no Prefect server to wait for."""

from __future__ import annotations

import sys
from pathlib import Path

from diffmining_core.errors import InputError
from diffmining_core.images.sources import canonical_url, check_apart, check_source
from diffmining_core.models.files import find_model
from diffmining_core.recipes import MINED, TRAIN
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import open_run, read_run
from flows.parameters import FinetuneParameters, IndexParameters, TypicalityParameters


def check_inputs(parameters: FinetuneParameters) -> None:
    """Refuse what cannot be finetuned on or mined; else claim the root.

    The root comes last: a mistyped dataset or model must not put its name on a fresh root.
    InputError for recipe, prompts, timesteps, dataset, model or root, in this order.
    """
    check_sources(parameters)
    claim_root(parameters)


def check_sources(parameters: FinetuneParameters) -> None:
    """Refuse what cannot be finetuned on or mined, whatever the root."""
    check_places(parameters)
    settings = parameters.settings()
    if isinstance(parameters, TypicalityParameters):
        check_timesteps(*settings.t_range)
    splits = [MINED] if isinstance(parameters, TypicalityParameters) else []
    if settings.finetune_steps and (settings.recipe.trains_on_others or not splits):
        splits.append(TRAIN)
    for split in splits:
        check_source(parameters.dataset, settings.recipe.layout(split), parameters.allow)
    find_model(parameters.model_source())
    find_model(parameters.start_source())


def check_dataset(parameters: IndexParameters) -> None:
    """Refuse a dataset or root that cannot be used; else claim the root."""
    check_places(parameters)
    recipe = parameters.chosen_recipe()
    for split in (MINED, TRAIN) if recipe.trains_on_others else (MINED,):
        check_source(parameters.dataset, recipe.layout(split), parameters.allow)
    claim_root(parameters)


def check_places(parameters: IndexParameters) -> None:
    """Refuse a root in its own dataset, and paths that mean something else to a worker."""
    _check_absolute(parameters)
    check_apart(parameters.dataset, parameters.root)


def _check_absolute(parameters: IndexParameters) -> None:
    """Refuse paths that mean something else in the folder a worker happens to run in."""
    if "prefect" not in sys.modules:  # as in a command, which need not wait for its import
        return
    from prefect.runtime import deployment

    if not deployment.id:
        return
    places = [(name, getattr(parameters, name, None)) for name in ("dataset", "root", "masks")]
    for name, place in [*places, *(("allow", place) for place in parameters.allow)]:
        if place is not None and "://" not in place and not Path(place).is_absolute():
            raise InputError(
                f"{name} must be an absolute path or a URL where a worker runs this, but is "
                f"{place!r}."
            )


def claim_root(parameters: IndexParameters) -> None:
    """Put the dataset's name on a fresh root; InputError if it holds another's results."""
    open_run(open_root(parameters.root), {"dataset": canonical_url(parameters.dataset)})


def unclaimed_root(parameters: IndexParameters) -> Root | None:
    """The root as it is, None where there is none yet; nothing is written.

    InputError if it holds the results of another dataset, or cannot be read.
    """
    is_local = "://" not in parameters.root
    if is_local and not Path(parameters.root).exists():
        return None
    root = open_root(parameters.root, create=not is_local)  # which writes nothing elsewhere
    if read_run(root) is None:
        return None
    open_run(root, {"dataset": canonical_url(parameters.dataset)})
    return root


def check_steps(steps: int, inversion_stride: int) -> None:
    """Refuse steps of sampling and inversion that do not meet at the same timesteps."""
    if 1000 % steps:
        raise InputError(f"steps must divide 1000, but are {steps}; the paper's are 50.")
    if (apart := 1000 // steps) % inversion_stride:
        raise InputError(
            f"inversion_stride must divide {apart}, the timesteps between two of {steps} steps, "
            f"but is {inversion_stride}; 1 is exact."
        )


def check_timesteps(t_min: float, t_max: float) -> None:
    """Refuse a range of timesteps that does not rise."""
    if t_min >= t_max:
        raise InputError(
            f"t_min must be below t_max, but they are {t_min} and {t_max}; "
            "the paper's are 0.1 and 0.7."
        )
