"""Addresses as pages show them: without this machine's folders, its users or secrets.

In: addresses, and texts that name some. Out: the same relative to the dataset, or their last part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
from fsspec.core import has_magic

from diffmining_core.report.shown_paths import without_folders
from diffmining_core.secrets import cleaned, without_secrets
from diffmining_core.store.roots import Root
from diffmining_core.store.runs import read_run

Fact = TypeVar("Fact")

_FILES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet", ".tar")
"""Endings, in lower case, of datasets that are files."""


@dataclass(frozen=True)
class ShownAddresses:
    """The addresses of a run's images as its pages show them.

    dataset: the folder or address that the images are below; None where it is not known.
    """

    dataset: str | None = None

    @classmethod
    def at(cls, root: Root) -> ShownAddresses:
        """For the run that owns a root."""
        run = read_run(root)
        dataset = run.identity.get("dataset") if run else None
        return cls(_folder(dataset) if dataset else None)

    def address(self, uri: str) -> str:
        """Relative to the dataset; of a place elsewhere the cleaned URL, or a file's own name."""
        uri = cleaned(uri)
        if self.dataset and uri.startswith(f"{self.dataset}/"):
            return uri.removeprefix(f"{self.dataset}/")
        server = uri.partition("#")[0].partition("://")[2].partition("/")[0]
        # Below a root are the images that it keeps: their addresses mean nothing elsewhere.
        if server and "@" not in server and "/attempt-" not in uri:
            return uri
        return uri.rpartition("/")[2]

    def text(self, text: str) -> str:
        """A sentence with its addresses as they are shown."""
        if self.dataset:
            text = text.replace(f"{self.dataset}/", "")
        return without_paths(text)

    def table(self, table: pa.Table) -> pa.Table:
        """A table with its column `uri`, and `reason` if it has one, as they are shown."""
        for name, shown in (("uri", self.address), ("reason", self.text)):
            place = table.schema.get_field_index(name)
            if place >= 0:
                values = pa.array(map(shown, table.column(place).to_pylist()), pa.string())
                table = table.set_column(place, name, values)
        return table


def without_paths(fact: Fact) -> Fact:
    """A text, or all texts in lists and mappings, without secrets and folders of this machine."""
    plain: Any = fact
    if isinstance(fact, str):
        plain = without_folders(without_secrets(fact))
    elif isinstance(fact, Mapping):
        plain = {name: without_paths(value) for name, value in fact.items()}
    elif isinstance(fact, list | tuple):
        plain = [without_paths(value) for value in fact]
    shown: Fact = plain
    return shown


def _folder(dataset: str) -> str:
    """The folder that a dataset's images are in: its own, or that of its files."""
    parts = dataset.rstrip("/").split("/")
    at = next((place for place, part in enumerate(parts) if has_magic(part)), len(parts))
    is_file = at == len(parts) and parts[-1].lower().endswith(_FILES)
    return "/".join(parts[: at - is_file])
