"""What is refused before anything is computed: in seconds, with no Prefect server to wait for."""

from __future__ import annotations

from diffmining_core.errors import InputError
from diffmining_core.images.sources import canonical_url, check_source
from diffmining_core.models.files import find_model
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import open_run
from flows.parameters import IndexParameters, MineParameters


def check_inputs(parameters: MineParameters) -> None:
    """Refuse what cannot be mined; else claim the root.

    The root comes last: a mistyped dataset or model must not put its name on a fresh root.
    InputError for prompts, timesteps, dataset, model or root, in this order.
    """
    check_parameters(parameters)
    check_source(parameters.dataset)
    find_model(parameters.model)
    claim_root(parameters)


def check_dataset(parameters: IndexParameters) -> None:
    """Refuse a dataset or root that cannot be used; else claim the root."""
    check_source(parameters.dataset)
    claim_root(parameters)


def claim_root(parameters: IndexParameters) -> None:
    """Put the dataset's name on a fresh root; InputError if it holds another's results."""
    open_run(open_root(parameters.root), {"dataset": canonical_url(parameters.dataset)})


def check_parameters(parameters: MineParameters) -> None:
    """Refuse what no single field can see."""
    PromptTemplate(parameters.prompt, parameters.null_prompt)
    if parameters.t_min >= parameters.t_max:
        raise InputError(
            f"t_min must be below t_max, but they are {parameters.t_min} and {parameters.t_max}; "
            "the paper's are 0.1 and 0.7."
        )
