"""What a run made, by reference: its dataset shards and the published units behind its page.

The data itself stays at the root; `tasks` publishes these references, readers start from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from diffmining_core.store.ledger import finished, read_json
from diffmining_core.store.roots import Root

RESULTS = "results.json"
"""In a report's unit: what it was made from."""

TYPICALITY, FEATURES, CLUSTERS, REPORT = "typicality", "features", "clusters", "report"
"""Stages whose units are read again, by those who show or export what they hold."""

SHARD_TABLE, FEATURES_TABLE = "shard.parquet", "features.parquet"
"""In the units of dataset shards and of features."""


@dataclass(frozen=True)
class Shard:
    """A dataset shard by reference; its table stays in storage.

    `content_id` names its images and labels whatever their place. Rows that have left the dataset
    since it was indexed, or got another label, are `dropped` (their numbers); with them its content
    was `indexed_id`. `labels` counts its good images per label; one of several counts in each.
    `details_id` is for what reads details too, "" where there are none.
    """

    key: str
    indexed_id: str
    content_id: str
    dropped: tuple[int, ...]
    images: int
    labels: tuple[tuple[str, int], ...]
    set_aside: int
    declared: int
    details_id: str = ""
    stage: str = "index"

    @classmethod
    def from_json(cls, shard: Mapping[str, Any]) -> Shard:
        """A shard as `dataclasses.asdict` and JSON left it."""
        labels = tuple((label, count) for label, count in shard["labels"])
        return cls(**{**shard, "dropped": tuple(shard["dropped"]), "labels": labels})

    @property
    def name(self) -> str:
        """A short name for logs and run names."""
        return self.key[:8]

    @property
    def pairs(self) -> int:
        """Good images under each of their labels."""
        return sum(count for _, count in self.labels)


@dataclass(frozen=True)
class Results:
    """The published units that a page shows."""

    dataset: tuple[Shard, ...]
    images: int
    """How many were measured: the good ones of the dataset, less those set aside then."""
    size: int
    typicality: tuple[str, ...]
    selection: str
    clusters: tuple[tuple[str, str], ...]
    """(label, key)."""
    finetune: str | None
    compared: tuple[Shard, ...]
    """The shards also measured before finetuning, one for each key of `typicality_before`."""
    typicality_before: tuple[str, ...]
    selection_before: str | None

    @classmethod
    def from_json(cls, results: Mapping[str, Any]) -> Results:
        """Results as `dataclasses.asdict` and JSON left them."""
        return cls(
            **{
                **results,
                "dataset": tuple(map(Shard.from_json, results["dataset"])),
                "compared": tuple(map(Shard.from_json, results["compared"])),
                "clusters": tuple((label, key) for label, key in results["clusters"]),
                "typicality": tuple(results["typicality"]),
                "typicality_before": tuple(results["typicality_before"]),
            }
        )


def results_of(root: Root, report_key: str) -> Results:
    """What a published report was made from."""
    return Results.from_json(read_json(root, finished(root, REPORT, report_key), RESULTS))


def summarised_report(root: Root) -> str | None:
    """The key of the report whose numbers `summary.json` holds, None if there is none yet."""
    try:
        summary = from_json(root.read_bytes("summary.json"))
    except (FileNotFoundError, ValueError):
        return None
    match summary:
        case {"report": str(key)}:
            return key
    return None
