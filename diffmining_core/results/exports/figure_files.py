"""The figures of a run as files: an overview, and the clusters and strips of each label."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from diffmining_core.report.layouts import Figure
from diffmining_core.report.source import SMALL_CLUSTER, label_slugs
from diffmining_core.results.opened import MinedResults
from diffmining_core.store.roots import Root


def write_figures(
    results: MinedResults,
    target: Root,
    form: str,
    label: str | None = None,
    on_label: Callable[[], object] = lambda: None,
) -> list[str]:
    """Write the figures of one label, or of all and an overview, as png, svg or pdf.

    Returns the names of the files. A label without clusters of 6 members has strips only.
    """
    names = []
    slugs = label_slugs(results.labels)
    for one in results.labels if label is None else [label]:
        for layout, figure in _label_figures(results, one):
            names.append(f"{slugs[one]}-{layout}.{form}")
            target.write_new(names[-1], figure.encoded(form))
        on_label()
    for number, sheet in enumerate(results.overview() if label is None else [], 1):
        names.append(f"overview-{number}.{form}" if number > 1 else f"overview.{form}")
        target.write_new(names[-1], sheet.encoded(form))
    return names


def _label_figures(results: MinedResults, label: str) -> Iterator[tuple[str, Figure]]:
    yield "strips", results.figure(label, "strips")
    members = results.cluster_summary(label)["members"].to_pylist()
    if max(members, default=0) >= SMALL_CLUSTER:
        yield "clusters", results.figure(label, "clusters")
