"""The command line: what is run, what studies it, and what looks after data and results."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, get_type_hints

from cyclopts import App, CoercionError, CycloptsError, Parameter, UnknownOptionError
from cyclopts import ValidationError as CycloptsValidationError
from pydantic import BaseModel, ValidationError

from diffmining_core.errors import InputError
from diffmining_core.images.tally import Reason
from diffmining_core.recipes import TRAIN
from diffmining_core.report.escaping import one_line
from diffmining_core.secrets import without_secrets
from diffmining_core.signs import Sign
from flows.answers import Answer, command, epilogue, told_answer
from flows.checks import check_dataset, check_inputs
from flows.download import published
from flows.export import elsewhere
from flows.forms import refusal
from flows.parameters import (
    ClusterStudyParameters,
    CompareParameters,
    FinetuneParameters,
    GeneratedStudyParameters,
    IndexParameters,
    LocalizeParameters,
    MineParameters,
    NightlyParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    PredictabilityStudyParameters,
    StudyParameters,
    TimestepStudyParameters,
    TranslateParameters,
    TypicalityParameters,
)
from flows.temporary_server import run
from flows.upkeep import storage, upkeep

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses; `STATUSES` says what they mean."""

REASONS_SHOWN = 10
"""Reasons that `index` prints, the commonest first; the others are counted together."""

STATUSES = """\
Exit status: 0, it is done. 1, something failed or is to be done again; the same command goes on
from there. 2, something is for you to mend, and one sentence says what. 130, you interrupted it;
what is finished is kept."""

DryRun = Annotated[
    bool,
    Parameter(
        negative="",
        help="Only say what it would take: images, UNet forwards, hours, bytes and memory. Nothing "
        "is written; the model runs for a few seconds, to see how fast this device is.",
    ),
]
CostPerHour = Annotated[
    float | None,
    Parameter(help="With --dry-run: price of an hour of this device, in any currency."),
]

app = App(
    name="diffmining",
    help="Show what is typical of each label of an image collection.",
    help_epilogue=f"{epilogue(['diffmining demo', 'diffmining mine --help'])}\n\n{STATUSES}",
    suppress_keyboard_interrupt=False,  # `main` has a sentence for it
)
study = App(
    name="study",
    help="Measure what decides how well mining does.",
    help_epilogue=epilogue(["diffmining study timesteps --dataset photos --root study"]),
)
app.command(study)
app.command(storage)
for others in (published, upkeep, elsewhere):
    app.command(others, name="*")
app.register_install_completion_command(
    help="Have the shell (bash, zsh, fish) complete commands and options.",
    help_epilogue=epilogue(["diffmining --install-completion --shell bash"]),
)


@command(
    app,
    "diffmining mine --dataset photos --root mined",
    "diffmining mine --dry-run --dataset photos --root mined --model stable-diffusion-v1-5/"
    "stable-diffusion-v1-5 --cost-per-hour 2.5",
)
def mine(
    parameters: Annotated[MineParameters, Parameter(name="*")],
    *,
    dry_run: DryRun = False,
    cost_per_hour: CostPerHour = None,
) -> Answer:
    """Mine a dataset: index, finetune, measure typicality, cluster patches, draw the page.

    Run it again with the same dataset, model and root to go on where it stopped.
    """
    if dry_run:
        return expected_answer(parameters, cost_per_hour)
    check_inputs(parameters)  # the flow does so too, but only once it has a server
    from flows.mine import mine as flow

    summary = run(flow, parameters)
    return Answer(summary, lambda: print_end(summary))


@command(
    app,
    "diffmining index --dataset photos --root mined",
    "diffmining index --dataset s3://bucket/photos.parquet --root s3://bucket/mined",
)
def index(parameters: Annotated[IndexParameters, Parameter(name="*")]) -> Answer:
    """Index a dataset into shards ahead of mining it: what can be used, what is set aside.

    `mine` does this too; here it is by itself, to look before a long run.
    """
    check_dataset(parameters)
    from flows.index import index_dataset as flow

    counts = run(flow, parameters)

    def say() -> None:
        print()
        print_counts(counts)
        if train := counts.get(TRAIN):
            print("To train on:")
            print_counts(train)

    return Answer(counts, say)


@command(
    app,
    "diffmining finetune --dataset photos --root mined --finetune-steps 900",
    "diffmining finetune --dry-run --dataset photos --root mined --model stable-diffusion-v1-5/"
    "stable-diffusion-v1-5",
)
def finetune(
    parameters: Annotated[FinetuneParameters, Parameter(name="*")],
    *,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    cost_per_hour: CostPerHour = None,
) -> Answer:
    """Finetune a model on a dataset; `mine` at the same root then takes it.

    Parameters
    ----------
    dry_run
        Only say what it would take: images, steps, epochs, forwards, memory, hours and bytes.
    """
    from flows import finetune as finetuning

    if dry_run:
        return told_answer(finetuning.dry_run(parameters, cost_per_hour))
    finetuning.check(parameters)
    summary = run(finetuning.finetune, parameters)

    def say() -> None:
        print(
            f"\n{summary['images']} images of {summary['labels']} labels, "
            f"{summary['seconds']:.0f} s"
            + (f", {summary['images_per_second']:.3g} images/s" if summary["computed"] else "")
        )
        if summary["rising_since"]:
            print(f"The loss on held-out images rises since step {summary['rising_since']}")
        print(f"Use it with --model {summary['model']}")

    return Answer(summary, say)


@command(
    app,
    "diffmining typicality --dataset photos --root mined --draws 32",
    "diffmining typicality --dataset photos --root mined --model mined/finetune/KEY/attempt-ID/"
    "model --finetune-steps 0",
)
def typicality(
    parameters: Annotated[TypicalityParameters, Parameter(name="*")],
    *,
    dry_run: DryRun = False,
    cost_per_hour: CostPerHour = None,
) -> Answer:
    """Measure typicality only: index, finetune, and make the maps of every shard.

    `mine` at the same root then takes these maps.
    """
    if dry_run:
        return expected_answer(parameters, cost_per_hour)
    check_inputs(parameters)
    from flows.typicality import typicality as flow

    summary = run(flow, parameters)

    def say() -> None:
        print(
            f"\n{summary['images']} images in {len(summary['maps'])} shards, "
            f"{summary['set_aside']} set aside, {summary['unet_forwards']} UNet forwards, "
            f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB"
        )
        for note in summary["notes"]:
            print(f"Note: {note}")

    return Answer(summary, say)


@command(
    app,
    "diffmining nightly --dataset s3://bucket/photos --root s3://bucket/mined",
    "diffmining nightly --dataset photos --root mined --gpu-hour-price 2.5 --currency EUR",
)
def nightly(parameters: Annotated[NightlyParameters, Parameter(name="*")]) -> Answer:
    """Mine what has come since last night, and publish a digest: a page, and a message if wanted.

    With nothing new, no model is started.
    """
    check_inputs(parameters)
    from flows.nightly import nightly as flow

    summary = run(flow, parameters)

    def say() -> None:
        print(f"\n{summary['said']}")
        if summary["message"]:
            print(summary["message"])
        print(f"Open {summary['page']}")

    return Answer(summary, say)


@command(
    app,
    "diffmining localize --dataset photos --masks masks --root localized",
    "diffmining localize --dataset xray --recipe xray --root localized",
    "diffmining localize --dry-run --dataset xray --recipe xray --root localized",
)
def localize(
    parameters: Annotated[LocalizeParameters, Parameter(name="*")],
    *,
    dry_run: DryRun = False,
    cost_per_hour: CostPerHour = None,
) -> Answer:
    """Score where in an image typicality puts its label, against boxes or masks, and draw the page.

    Finetunes on the labels of whole images, and measures the images whose label is located.
    """
    if dry_run:
        return expected_answer(parameters, cost_per_hour)
    from flows import localize as localizing

    localizing.check(parameters)
    summary = run(localizing.localize, parameters)
    return Answer(summary, lambda: print_scores(summary))


@command(
    app,
    "diffmining translate --dataset photos --root mined --per-label 100",
    "diffmining translate --dry-run --dataset photos --root mined --targets cats --targets dogs",
)
def translate(
    parameters: Annotated[TranslateParameters, Parameter(name="*")],
    *,
    dry_run: DryRun = False,
    cost_per_hour: CostPerHour = None,
) -> Answer:
    """Redraw images under every label, and group what is typical in all of them at one place.

    Plug-and-Play with the finetuned model; the page shows each element across the labels.
    """
    if dry_run:
        return expected_answer(parameters, cost_per_hour)
    from flows import translate as translating

    translating.check(parameters)
    summary = run(translating.translate, parameters)

    def say() -> None:
        print(
            f"\n{summary['sequences']} sequences in {len(summary['clusters'])} joint clusters, "
            f"{summary['unet_forwards']} UNet forwards, {summary['seconds']:.0f} s, "
            f"at most {summary['peak_memory_mb']} MB"
        )
        for note in summary["facts"]["notes"]:
            print(f"Note: {note}")
        print(f"Open {summary['page']}")

    return Answer(summary, say)


@command(
    app,
    "diffmining compare --dataset photos --root mined",
    "diffmining compare --dataset photos --root mined --baselines doersch --baselines random",
)
def compare(parameters: Annotated[CompareParameters, Parameter(name="*")]) -> Answer:
    """Mine by typicality and by other methods, and draw which finds what, and at what cost.

    Where a known answer (`truth.parquet`, masks or boxes) is there, it says how much of what each
    finds is right. At a root that was mined with the same options, typicality is taken from there.
    """
    from flows import compare as comparing

    comparing.check(parameters)
    return study_answer(run(comparing.compare, parameters))


@command(
    study,
    "diffmining study finetuning --dataset photos --masks masks --root study --at 100 --at 300",
    name="finetuning",
)
def study_finetuning(parameters: Annotated[StudyParameters, Parameter(name="*")]) -> Answer:
    """Mine with the model as it is at several steps of finetuning, and draw truth against steps.

    The dataset needs a known answer: planted elements (`truth.parquet`), a folder of masks, or
    boxes.
    """
    from flows.study import finetuning as studies

    studies.check(parameters)
    summary = run(studies.study_finetuning, parameters)

    def say() -> None:
        print(f"\n{'step':>8}{'average precision':>20}{'by chance':>12}{'patches that hit':>19}")
        for point in summary["points"]:
            hit = point["hits"].get("highest", 0)
            print(
                f"{point['step']:>8}{point['average_precision']:>20.3f}"
                f"{point['base_rate']:>12.3f}{hit:>19.0%}"
            )
        print(f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB")
        print(f"Open {summary['page']}")

    return Answer(summary, say)


@command(
    study,
    "diffmining study timesteps --dataset photos --root study --bins 5",
    name="timesteps",
)
def study_timesteps(parameters: Annotated[TimestepStudyParameters, Parameter(name="*")]) -> Answer:
    """Mine with typicality of one narrow range of timesteps at a time, and draw truth against them.

    A known answer (`truth.parquet`, masks or boxes) is measured against where there is one.
    """
    from flows.study import prepared, sides

    prepared.check(parameters)
    return study_answer(run(sides.study_timesteps, parameters))


@command(
    study,
    "diffmining study noise --dataset photos --root study --seeds 4",
    name="noise",
)
def study_noise(parameters: Annotated[NoiseStudyParameters, Parameter(name="*")]) -> Answer:
    """Mine under draws of several seeds, of both noise and timestep or with one of them fixed.

    Says how much of a map and of the highest patches is chance.
    """
    from flows.study import prepared, sides

    prepared.check(parameters)
    return study_answer(run(sides.study_noise, parameters))


@command(
    study,
    "diffmining study patch-sizes --dataset photos --root study --sizes 24 --sizes 48",
    name="patch-sizes",
)
def study_patch_sizes(
    parameters: Annotated[PatchSizeStudyParameters, Parameter(name="*")],
) -> Answer:
    """Cut the same maps into patches of several sizes, and draw what they hit."""
    from flows.study import prepared, sides

    prepared.check(parameters)
    return study_answer(run(sides.study_patch_sizes, parameters))


@command(
    study,
    "diffmining study clusters --dataset photos --root study --ks 8 --ks 16",
    name="clusters",
)
def study_clusters(parameters: Annotated[ClusterStudyParameters, Parameter(name="*")]) -> Answer:
    """Cluster the highest patches in several ways: k-means, merged groups, HDBSCAN.

    Says how many clusters are mixed or duplicate, by kinds of planted elements where these are
    known.
    """
    from flows.study import clusters, prepared

    parameters.numbers()
    prepared.check(parameters)
    return study_answer(run(clusters.study_of_clusters, parameters))


@command(
    study,
    "diffmining study predictability --dataset photos --root study --patches 100",
    name="predictability",
)
def study_predictability(
    parameters: Annotated[PredictabilityStudyParameters, Parameter(name="*")],
) -> Answer:
    """Predict the label from the highest, random and lowest patches, by features and colours.

    A linear classifier is asked about images that it has not seen.
    """
    from flows.study import predictability, prepared

    prepared.check(parameters)
    return study_answer(run(predictability.study_of_predictability, parameters))


@command(
    study,
    "diffmining study generated --dataset photos --root study --guidance 1 --guidance 5",
    name="generated",
)
def study_generated(parameters: Annotated[GeneratedStudyParameters, Parameter(name="*")]) -> Answer:
    """Mine images that the model generates of each label, beside the real ones.

    The images stay at the root, as a dataset of its own for each guidance scale.
    """
    from flows.study import generated, prepared

    prepared.check(parameters)
    return study_answer(run(generated.study_of_generated, parameters))


@app.command(
    help_epilogue=epilogue(
        ["diffmining serve mined", "diffmining serve s3://bucket/mined --port 0"]
    )
)
def serve(root: str, *, host: str = "127.0.0.1", port: int = 8610) -> None:
    """Serve the gallery of a root to this machine's browsers, and how far its run is.

    Nothing is written. The gallery is at `/` as soon as it is there, the status at `/status`.

    Parameters
    ----------
    root
        Folder or URL of the results.
    host
        Address to listen at; any but this machine's own lets others see the results.
    port
        Port to listen at; 0 for any that is free.
    """
    from flows.serve import serve as serve_root

    serve_root(root, host, port)


@command(app, "diffmining demo", "diffmining demo --folder /tmp/demo --json")
def demo(folder: Path = Path("demo")) -> Answer:
    """Mine the built-in street scenes with the tiny pipeline, and measure it against the truth.

    Parameters
    ----------
    folder
        Where the scenes, the results and the page go.
    """
    from flows.demo import demo as run_demo

    summary = run_demo(folder)
    return Answer(summary, lambda: print_end(summary))


def expected_answer(parameters: TypicalityParameters, cost_per_hour: float | None) -> Answer:
    """What a run would take."""
    from flows.dry_run import dry_run

    return told_answer(dry_run(parameters, cost_per_hour))


def study_answer(summary: dict[str, Any]) -> Answer:
    """What a study found: its summary, and the table of it."""
    return Answer(summary, lambda: print_study(summary))


def print_counts(counts: dict[str, Any]) -> None:
    """What a split of a dataset holds."""
    pairs = "" if counts["pairs"] == counts["images"] else f" ({counts['pairs']} with a label each)"
    print(
        f"{counts['images']} images{pairs} of {len(counts['labels'])} labels in "
        f"{counts['shards']} shards ({counts['indexed']} of them new), "
        f"{counts['set_aside']} set aside, {counts['left_out']} left out"
    )
    for what in ("set_aside", "left_out"):
        for line in reasons_in_words(counts[f"{what}_reasons"]):
            print(f"  {what.replace('_', ' ')}: {line}")
    for line in reasons_in_words(counts["scaled"]):
        print(f"  {line}")
    if counts["declared"]:
        print(
            f"{counts['declared']} of them are as the manifest says and were not opened; those "
            "that prove unusable are set aside when they are measured"
        )


def reasons_in_words(reasons: dict[str, Reason]) -> Iterator[str]:
    """The commonest reasons with their numbers and the first names, a line each."""
    for reason, found in list(reasons.items())[:REASONS_SHOWN]:
        names = ", ".join(one_line(name, 80) for name in found["names"])
        more = ", …" if found["count"] > len(found["names"]) else ""
        yield f"{found['count']} × {reason}" + (f" ({names}{more})" if names else "")
    if others := sum(found["count"] for found in list(reasons.values())[REASONS_SHOWN:]):
        yield f"{others} × other reasons"


def print_scores(summary: dict[str, Any]) -> None:
    """Average precision of each label's images, and the page to open."""
    sides = summary["sides"]
    print(f"\nAverage precision\n{'':24}{'images':>8}{'by chance':>11}", end="")
    print("".join(f"{side:>17}" for side in sides))
    for finding in [*summary["findings"], summary["all"]]:
        name = one_line(finding["label"] or "all", 24)
        print(f"{name:24}{finding['images']:>8}{finding['chance']['mean']:>11.3f}", end="")
        spreads = (finding["average_precision"][side] for side in sides)
        print("".join(f"{one['mean']:>9.3f} ± {one['std']:.3f}" for one in spreads))
    for note in summary["facts"]["notes"]:
        print(f"Note: {note}")
    print(f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB")
    print(f"Open {summary['page']}")


def print_study(summary: dict[str, Any]) -> None:
    """The table of a study, and the page to open."""
    rows = [summary["table"]["columns"], *summary["table"]["rows"]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for first, *others in rows:
        cells = (f"{cell:>{2 + width}}" for cell, width in zip(others, widths[1:], strict=True))
        print(f"{first:{widths[0]}}{''.join(cells)}")
    for note in summary["facts"]["notes"]:
        print(f"Note: {note}")
    print(f"{summary['seconds']:.0f} s, at most {summary['peak_memory_mb']} MB")
    print(f"Open {summary['page']}")


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


def say_without_secrets(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of an unexpected error; libraries quote whole addresses in theirs."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def main() -> None:
    """Run the command; an error that is the user's to mend is one sentence and status 2."""
    # Nothing leaves this machine unless asked for.
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # Prefect waits 20 s for the server it starts, which two busy cores exceed.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.engine"):
        logging.getLogger(name).addFilter(_OneSentence())
    sys.excepthook = say_without_secrets
    without_colours_where_unwanted()
    try:
        app(exit_on_error=False, print_error=False)
    except InputError as error:
        refuse(str(error), REFUSED)
    except CycloptsError as error:
        refuse(option_error(error), REFUSED)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second one ends what is tidied up now
        refuse(
            "interrupted; what is finished is kept, and the same command goes on from there",
            INTERRUPTED,
        )
    except OSError as error:  # storage or network, after its retries
        refuse(f"{error}; run the same command again to go on from here", FAILED)


def without_colours_where_unwanted() -> None:
    """Have help and logs obey NO_COLOR (https://no-color.org): no escape codes at all."""
    if not os.environ.get("NO_COLOR"):
        return
    from rich.console import Console

    os.environ["PREFECT_LOGGING_COLORS"] = "false"
    app.console = Console(color_system=None)


def refuse(sentence: str, status: int) -> None:
    """Print one sentence to the error output and exit."""
    print(f"diffmining: {without_secrets(sentence)}", file=sys.stderr)
    sys.exit(status)


def option_error(error: CycloptsError) -> str:
    """What is wrong with the options given, in one sentence; of values, what the UI's form says."""
    form = form_of(error.target)
    wrong = wrong_values(error) if form else []
    if not wrong:
        return f"{error} Ask for the options with --help."
    sentence = "; ".join(
        f"--{name.replace('_', '-')}: {form_sentence(form, name, value) or otherwise}"
        for name, value, otherwise in wrong
    )
    return f"{sentence}. {error}" if isinstance(error, UnknownOptionError) else sentence


def form_of(command: Callable[..., Any] | None) -> dict[str, Any]:
    """The JSON schema of the parameters that a command takes, empty if it takes no such model."""
    for kind in get_type_hints(command).values() if command else ():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_json_schema()
    return {}


def wrong_values(error: CycloptsError) -> list[tuple[str, Any, str]]:
    """Field, value, and what the parser says about it, for each value that it refuses."""
    invalid = error.__cause__
    if isinstance(error, CycloptsValidationError) and isinstance(invalid, ValidationError):
        return [
            (str(wrong["loc"][0]), wrong["input"], f"{wrong['msg']}, but is {wrong['input']!r}")
            for wrong in invalid.errors()
            if wrong["loc"]
        ]
    if isinstance(error, CoercionError | UnknownOptionError) and error.token:
        option = error.token.keyword or error.token.value
        if option.startswith("--"):
            name = option.partition("=")[0].removeprefix("--").replace("-", "_")
            return [(name, error.token.value, str(error))]
    return []


def form_sentence(form: dict[str, Any], name: str, value: Any) -> str | None:
    """What the Prefect UI says to a value in the field `name`, None if nothing."""
    kind = form["properties"].get(name, {}).get("type")
    if isinstance(value, str) and kind != "string":
        with suppress(ValueError):  # the word on the command line, as the number that it stands for
            value = json.loads(value)
    refused = refusal({name: [value] if kind == "array" else value}, form, complete=False)
    return refused.sentence if refused else None
