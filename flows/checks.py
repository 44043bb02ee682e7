"""What is refused before anything is computed: in seconds, with no Prefect server to wait for."""

from __future__ import annotations

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, list_folder
from diffmining_core.models.files import find_model
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.ledger import open_run
from diffmining_core.store.roots import open_root
from flows.parameters import MineParameters


def check_inputs(parameters: MineParameters) -> list[FoundImage]:
    """Refuse what cannot be mined; else claim the root and return the images of the dataset.

    The root comes last: a mistyped dataset or model must not put its name on a fresh root.
    InputError for prompts, timesteps, dataset, model or root, in this order.
    """
    check_parameters(parameters)
    found = list_folder(parameters.dataset)
    find_model(parameters.model)
    open_run(open_root(parameters.root), {"dataset": parameters.dataset, "model": parameters.model})
    return found


def check_parameters(parameters: MineParameters) -> None:
    """Refuse what no single field can see."""
    PromptTemplate(parameters.prompt, parameters.null_prompt)
    if parameters.t_min >= parameters.t_max:
        raise InputError(
            f"t_min must be below t_max, but they are {parameters.t_min} and {parameters.t_max}; "
            "the paper's are 0.1 and 0.7."
        )
