"""DIFT features of the highest patches of each label, made in batches of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

from prefect import flow
from prefect.client.schemas.objects import State
from pydantic import BaseModel, ConfigDict, Field

from diffmining_core.images.reach import DEFAULT_MAX_IMAGE_MB, set_reach
from diffmining_core.report.escaping import one_line
from diffmining_core.store.roots import open_root
from flows.fan_out import BatchFlow, Work, run_missing, shown_fan_out
from flows.parameters import (
    AllowedPlaces,
    DeviceName,
    MaxImageMb,
    MineParameters,
    Precision,
    run_title,
)
from flows.run_ledger import RunLedger
from tasks.board import Row
from tasks.features import RUN_NAME, features, features_unit
from tasks.models import ModelReference, choose_device
from tasks.units import Done

LABELS_PER_BATCH = 8
"""Of up to 1000 patches each: minutes of work, for which it pays to load a model."""


class EmbedBatch(BaseModel):
    """The highest patches of a few labels to embed, as the flows that mine write them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, Field(description="Folder or URL for the results.")]
    dataset: Annotated[str, Field(description="What a person calls the dataset.")]
    selection: Annotated[str, Field(description="Key of the selection that has the patches.")]
    digests: Annotated[
        dict[str, str], Field(description="By label, what identifies its patches.", min_length=1)
    ]
    model: Annotated[dict[str, Any], Field(description="Reference of the model.")]
    options: Annotated[
        dict[str, Any], Field(description="What decides a feature: prompts, size and seed.")
    ]
    device: DeviceName = "auto"
    precision: Precision = "auto"
    allow: AllowedPlaces = ()
    max_image_mb: MaxImageMb = DEFAULT_MAX_IMAGE_MB

    @property
    def title(self) -> str:
        """What the run is about."""
        first, more = one_line(next(iter(self.digests))), len(self.digests) - 1
        labels = first + (f" and {more} more labels" if more else "")
        return f"{run_title(self.dataset, self.root)}: {labels}"


@flow(
    name="embed-batch",
    flow_run_name="features {parameters.title}",
    log_prints=True,
    persist_result=False,
)
def embed_batch(parameters: EmbedBatch) -> list[Done]:
    """Embed the patches of a few labels one after the other, with one model in memory."""
    set_reach(parameters.allow, parameters.max_image_mb)
    model = ModelReference.from_json(parameters.model)
    work = [
        Work(features_unit(label, digest, model, parameters.options), label, (label, digest))
        for label, digest in parameters.digests.items()
    ]

    def embed_label(item: tuple[str, str]) -> State[Done]:
        return features(
            parameters.root,
            *item,
            parameters.selection,
            model,
            parameters.options,
            choose_device(parameters.device, parameters.precision),
            return_state=True,
        )

    return run_missing(work, embed_label)


def embed(
    parameters: MineParameters,
    selection: str,
    digests: dict[str, str],
    model: ModelReference,
    size: int,
    run: RunLedger,
    changes: dict[str, Any] | None = None,
) -> dict[str, str]:
    """The keys of the features of each label's highest patches.

    changes: what of the features' options is not as the parameters say, such as another kind of
    patches, of which `digests` then are.
    """
    options = {**parameters.features_options(size), **(changes or {})}
    work = [
        Work(features_unit(label, digest, model, options), label, (label, digest))
        for label, digest in digests.items()
    ]

    def batch(items: Sequence[tuple[str, str]]) -> EmbedBatch:
        return EmbedBatch(
            root=open_root(parameters.root).url,
            dataset=parameters.dataset_name,
            selection=selection,
            digests=dict(items),
            model=asdict(model),
            options=options,
            device=parameters.device,
            precision=parameters.precision,
            allow=parameters.reached,
            max_image_mb=parameters.max_image_mb,
        )

    batches = BatchFlow(embed_batch, batch, LABELS_PER_BATCH)
    rows = [Row(one.unit.key, one.name, RUN_NAME.format(label=one.name), 0, {}) for one in work]
    done = run.add(shown_fan_out(parameters, "label", work, batches, rows))
    return dict(zip(digests, (unit.key for unit in done), strict=True))
