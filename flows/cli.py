"""The command line: what is run, what studies it, and what looks after data and results."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts import ValidationError as CycloptsValidationError
from pydantic import ValidationError

from diffmining_core.errors import InputError
from diffmining_core.recipes import TRAIN
from diffmining_core.signs import Sign
from flows import download, upkeep
from flows.checks import check_dataset, check_inputs
from flows.parameters import (
    FinetuneParameters,
    IndexParameters,
    MineParameters,
    StudyParameters,
)

app = App(name="diffmining", help="Show what is typical of each label of an image collection.")
study = App(name="study", help="Measure what decides how well mining does.")
app.command(study)
download.add_to(app)
upkeep.add_to(app)


@app.command
def mine(parameters: Annotated[MineParameters, Parameter(name="*")]) -> None:
    """Mine a dataset: index, finetune, measure typicality, cluster patches, draw the page.

    Run it again with the same dataset, model and root to go on where it stopped.
    """
    check_inputs(parameters)  # the flow does so too, but only once it has a server
    from flows.mine import mine as flow

    print_end(flow(parameters))


@app.command
def index(parameters: Annotated[IndexParameters, Parameter(name="*")]) -> None:
    """Index a dataset into shards ahead of mining it: what can be used, what is set aside.

    `mine` does this too; here it is by itself, to look before a long run.
    """
    check_dataset(parameters)
    from flows.index import index_dataset as flow

    counts = flow(parameters)
    print()
    print_counts(counts)
    if train := counts.get(TRAIN):
        print("To train on:")
        print_counts(train)


@app.command
def finetune(
    parameters: Annotated[FinetuneParameters, Parameter(name="*")],
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Finetune a model on a dataset; `mine` at the same root then takes it.

    Parameters
    ----------
    dry_run
        Only say what it would take: steps, epochs, memory and hours.
    """
    from flows import finetune as finetuning

    if dry_run:
        print(finetuning.dry_run(parameters))
        return
    finetuning.check(parameters)
    summary = finetuning.finetune(parameters)
    print(
        f"\n{summary['images']} images of {summary['labels']} labels, {summary['seconds']:.0f} s"
        + (f", {summary['images_per_second']:.3g} images/s" if summary["computed"] else "")
    )
    if summary["rising_since"]:
        print(f"The loss on held-out images rises since step {summary['rising_since']}")
    print(f"Use it with --model {summary['model']}")


@study.command(name="finetuning")
def study_finetuning(parameters: Annotated[StudyParameters, Parameter(name="*")]) -> None:
    """Mine with the model as it is at several steps of finetuning, and draw truth against steps.

    The dataset needs a known answer: planted elements (`truth.parquet`) or a folder of masks.
    """
    from flows import study as studies

    studies.check(parameters)
    summary = studies.study_finetuning(parameters)
    print(f"\n{'step':>8}{'average precision':>20}{'by chance':>12}{'patches that hit':>19}")
    for point in summary["points"]:
        hit = point["hits"].get("highest", 0)
        print(
            f"{point['step']:>8}{point['average_precision']:>20.3f}{point['base_rate']:>12.3f}"
            f"{hit:>19.0%}"
        )
    print(f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB")
    print(f"Open {summary['page']}")


@app.command
def demo(folder: Path = Path("demo")) -> None:
    """Mine the built-in street scenes with the tiny pipeline, and measure it against the truth.

    Parameters
    ----------
    folder
        Where the scenes, the results and the page go.
    """
    from flows.demo import demo as run

    print_end(run(folder))


def print_counts(counts: dict[str, Any]) -> None:
    """What a split of a dataset holds."""
    pairs = "" if counts["pairs"] == counts["images"] else f" ({counts['pairs']} with a label each)"
    print(
        f"{counts['images']} images{pairs} of {len(counts['labels'])} labels in "
        f"{counts['shards']} shards ({counts['indexed']} of them new), "
        f"{counts['set_aside']} set aside"
    )
    if counts["left_out"]:
        print(f"{counts['left_out']} rows left out, as their images are not there")
    if counts["declared"]:
        print(
            f"{counts['declared']} of them are as the manifest says and were not opened; those "
            "that prove unusable are set aside when they are measured"
        )


def print_end(summary: dict[str, Any]) -> None:
    """The run's numbers, and the page to open."""
    print()
    if "average_precision" in summary:
        precision, hits = summary["average_precision"], summary["hits"]
        print("Truth: typicality against the planted elements")
        before = f"{precision['before']:.3f} before, " if "before" in precision else ""
        print(
            f"  average precision  {before}{precision['after']:.3f} after finetuning "
            f"(base rate {precision['base_rate']:.3f})"
        )
        print(
            "  patches that hit   "
            + ", ".join(f"{kind} {hits[kind]:.0%}" for kind in ("highest", "random", "lowest"))
        )
        print("  purity of the best clusters")
        for label, purity in summary["cluster_purity"].items():
            print(f"    {label:12s} " + " ".join(f"{share:4.0%}" for share in purity))
    print(
        f"{summary['images']} images in {summary['shards']} shards, "
        f"{summary['set_aside']} set aside, {summary['unet_forwards']} UNet forwards, "
        f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB"
    )
    for unit, reason in summary["repaired"].items():
        print(f"Made anew: {unit}, because {reason}")
    for note in summary["notes"]:
        print(f"Note: {note}")
    for sign in summary["signs"]:
        print(f"{sign['severity'].capitalize()}: {Sign.from_json(sign).as_text()}")
    print(f"Open {summary['page']}")


class _OneSentence(logging.Filter):
    """Leaves the traceback out of Prefect's records of an error that is the user's to mend."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], InputError):
            record.exc_info = None
        return True


def main() -> None:
    """Run the command; an error that is the user's to mend is one sentence and status 2."""
    # Nothing leaves this machine unless asked for.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Prefect waits 20 s for the server it starts, which two busy cores exceed.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_OneSentence())
    try:
        app(exit_on_error=False, print_error=False)
    except InputError as error:
        refuse(str(error), 2)
    except CycloptsError as error:
        refuse(option_error(error), 2)
    except OSError as error:  # storage or network, after its retries
        refuse(f"{error}; run the same command again to go on from here", 1)


def refuse(sentence: str, status: int) -> None:
    """Print one sentence to the error output and exit."""
    print(f"diffmining: {sentence}", file=sys.stderr)
    sys.exit(status)


def option_error(error: CycloptsError) -> str:
    """What is wrong with the options given, in one sentence."""
    invalid = error.__cause__
    if type(error) is not CycloptsValidationError or not isinstance(invalid, ValidationError):
        return f"{error} Ask for the options with --help."
    return "; ".join(
        f"--{'-'.join(map(str, wrong['loc'])).replace('_', '-')}: {wrong['msg'].lower()}, "
        f"but is {wrong['input']!r}"
        for wrong in invalid.errors()
    )
