"""Remove what nobody needs any more from a root, on a schedule; `diffmining gc` as a flow."""

from __future__ import annotations

from itertools import islice
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from diffmining_core.store.garbage import Garbage, clear_garbage
from diffmining_core.store.status import current_root
from flows.parameters import GcParameters
from flows.upkeep import age_text, garbage_sentence, seconds_of, size_text

SHOWN = 500
"""Rows of the table; a list of all of them is `diffmining gc`'s."""


@flow(name="gc", flow_run_name="gc {parameters.root}", log_prints=True)
def gc(parameters: GcParameters) -> dict[str, Any]:
    """List attempts that no result names, half-written files and records of repaired units.

    They are removed only with `delete`.
    """
    opened = current_root(parameters.root)
    age, delete = seconds_of(parameters.older_than), parameters.delete
    found = list(clear_garbage(opened, age, delete))
    sentence = garbage_sentence([item for item, _ in found], parameters.older_than, delete)
    get_run_logger().info("%s: %s", opened.url, sentence)
    create_table_artifact(
        [_row(item, old) for item, old in islice(found, SHOWN)],
        key="gc",
        description=f"{opened.url}: {sentence}",
    )
    return {
        "root": opened.url,
        "removed": delete,
        "leftovers": len(found),
        "files": sum(item.files for item, _ in found),
        "bytes": sum(item.bytes for item, _ in found),
    }


def _row(item: Garbage, age: float) -> dict[str, Any]:
    return {
        "what": item.kind,
        "where": item.rel,
        "files": item.files,
        "size": size_text(item.bytes),
        "age": age_text(age),
    }
