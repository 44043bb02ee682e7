"""The commands that take results elsewhere: `export` for other tools, `figures` for papers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from tqdm import tqdm

from flows.answers import Answer, command

if TYPE_CHECKING:
    from diffmining_core.results.opened import MinedResults
    from diffmining_core.store.roots import Root

elsewhere = App()


@command(
    elsewhere,
    "diffmining export mined --as csv --to tables",
    "diffmining export s3://bucket/mined --as huggingface --to patches",
    "diffmining export mined --as fiftyone --to s3://bucket/fiftyone",
)
def export(
    root: str,
    *,
    form: Annotated[Literal["coco", "huggingface", "fiftyone", "csv"], Parameter("--as")],
    to: str,
) -> Answer:
    """Write the patches of a finished run as a dataset of another tool.

    Parameters
    ----------
    root
        Folder or URL of the results.
    form
        What to write: COCO JSON, a Hugging Face dataset, a FiftyOne dataset, or CSV tables.
    to
        Folder or URL that holds nothing yet.
    """
    from diffmining_core.results.exports.target import open_target
    from diffmining_core.results.opened import open_results

    results = open_results(root)
    target = open_target(to)
    if form == "csv":
        from diffmining_core.results.exports.csv_tables import export_csv

        export_csv(results, target)
        counts = {"tables": len(results.tables)}
    else:
        counts = _export_images(form, results, target)
    document = {"root": results.root.url, "as": form, "to": target.url, **counts}
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return Answer(document, lambda: print(f"{said}\nWritten to {target.url}"))


def _export_images(form: str, results: MinedResults, target: Root) -> dict[str, int]:
    """Write what goes through the images; how many of what there are."""
    from diffmining_core.results.exports.coco import export_coco
    from diffmining_core.results.exports.fiftyone import export_fiftyone
    from diffmining_core.results.exports.huggingface import export_huggingface
    from diffmining_core.results.exports.mined_images import MinedImages

    write = {"coco": export_coco, "huggingface": export_huggingface, "fiftyone": export_fiftyone}
    images = MinedImages(results, with_maps=form == "fiftyone")
    with tqdm(total=len(images), desc="export", unit=" images") as bar:
        write[form](results, images, target, bar.update)
    return {"images": len(images), "labels": len(results.labels)}


@command(
    elsewhere,
    "diffmining figures mined --as pdf --to figures",
    "diffmining figures mined --as svg --to figures --label Paris",
)
def figures(
    root: str,
    *,
    form: Annotated[Literal["png", "svg", "pdf"], Parameter("--as")],
    to: str,
    label: str | None = None,
) -> Answer:
    """Draw the clusters and strips of each label, and an overview, as in the paper.

    Parameters
    ----------
    root
        Folder or URL of the results.
    form
        Format of the files.
    to
        Folder or URL that holds nothing yet.
    label
        Only this label, and no overview.
    """
    from diffmining_core.results.exports.figure_files import write_figures
    from diffmining_core.results.exports.target import open_target
    from diffmining_core.results.opened import open_results

    results = open_results(root)
    target = open_target(to)
    with tqdm(total=1 if label else len(results.labels), desc="figures", unit=" labels") as bar:
        files = write_figures(results, target, form, label, bar.update)
    document = {"root": results.root.url, "to": target.url, "files": files}
    return Answer(document, lambda: print(f"{len(files)} files\nWritten to {target.url}"))
