"""DIFT features of sequences under every label, made in batches of labels."""

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
from flows.embed import LABELS_PER_BATCH
from flows.fan_out import BatchFlow, Work, run_missing, shown_fan_out
from flows.parameters import (
    AllowedPlaces,
    DeviceName,
    MaxImageMb,
    Precision,
    TranslateParameters,
    run_title,
)
from flows.run_ledger import RunLedger
from tasks.board import Row
from tasks.models import ModelReference, choose_device
from tasks.parallel import FEATURES_RUN_NAME, Pair, joint_features, joint_features_unit
from tasks.units import Done


class JointEmbedBatch(BaseModel):
    """A few labels under which all sequences are embedded, as `translate` writes them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    root: Annotated[str, Field(description="Folder or URL for the results.")]
    dataset: Annotated[str, Field(description="What a person calls the dataset.")]
    labels: Annotated[list[str], Field(description="Labels to look under.", min_length=1)]
    sequences: Annotated[str, Field(description="Key of the sequences.")]
    pairs: Annotated[
        list[dict[str, Any]],
        Field(description="References of the shards, of their translations and of their maps."),
    ]
    model: Annotated[dict[str, Any], Field(description="Reference of the model.")]
    options: Annotated[
        dict[str, Any], Field(description="What decides a feature: prompts, size, seed.")
    ]
    device: DeviceName = "auto"
    precision: Precision = "auto"
    allow: AllowedPlaces = ()
    max_image_mb: MaxImageMb = DEFAULT_MAX_IMAGE_MB

    @property
    def title(self) -> str:
        """What the run is about."""
        first, more = one_line(self.labels[0]), len(self.labels) - 1
        labels = first + (f" and {more} more labels" if more else "")
        return f"{run_title(self.dataset, self.root)}: {labels}"


@flow(
    name="joint-embed-batch",
    flow_run_name="joint features {parameters.title}",
    log_prints=True,
    persist_result=False,
)
def joint_embed_batch(parameters: JointEmbedBatch) -> list[Done]:
    """Embed all sequences under a few labels one after the other, with one model in memory."""
    set_reach(parameters.allow, parameters.max_image_mb)
    model = ModelReference.from_json(parameters.model)
    pairs = [Pair.from_json(pair) for pair in parameters.pairs]
    work = [
        Work(
            joint_features_unit(label, parameters.sequences, model, parameters.options),
            label,
            label,
        )
        for label in parameters.labels
    ]

    def embed_label(label: str) -> State[Done]:
        return joint_features(
            parameters.root,
            label,
            parameters.sequences,
            pairs,
            model,
            parameters.options,
            choose_device(parameters.device, parameters.precision),
            return_state=True,
        )

    return run_missing(work, embed_label)


def embed_sequences(
    parameters: TranslateParameters,
    merged: str,
    pairs: Sequence[Pair],
    labels: Sequence[str],
    model: ModelReference,
    size: int,
    run: RunLedger,
) -> dict[str, str]:
    """The keys of the sequences' features, by the label that they are seen under."""
    root, options = parameters.root, parameters.features_options(size)
    work = [
        Work(joint_features_unit(label, merged, model, options), label, label) for label in labels
    ]

    def batch(some: Sequence[str]) -> JointEmbedBatch:
        return JointEmbedBatch(
            root=open_root(root).url,
            dataset=parameters.dataset_name,
            labels=list(some),
            sequences=merged,
            pairs=[asdict(pair) for pair in pairs],
            model=asdict(model),
            options=options,
            device=parameters.device,
            precision=parameters.precision,
            allow=parameters.reached,
            max_image_mb=parameters.max_image_mb,
        )

    rows = [
        Row(one.unit.key, one.name, FEATURES_RUN_NAME.format(label=one.name), 0, {}) for one in work
    ]
    batches = BatchFlow(joint_embed_batch, batch, LABELS_PER_BATCH)
    done = run.add(shown_fan_out(parameters, "label", work, batches, rows))
    return dict(zip(labels, (unit.key for unit in done), strict=True))
