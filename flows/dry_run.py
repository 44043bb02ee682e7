"""What a run would take: told before a long run, which it does not begin.

The model runs for a few seconds, on no image. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.answers import Told, check_cost, cost_told
from flows.expectation import FINETUNE, Expectation, ExpectedTranslation, Work, expectation
from flows.finetune import size_text, time_text
from flows.parameters import TypicalityParameters
from tasks.models import choose_device, loaded


def dry_run(parameters: TypicalityParameters, cost_per_hour: float | None = None) -> list[Told]:
    """What the run would take; InputError for what would be refused, as at its beginning."""
    check_cost(cost_per_hour)
    expected = expectation(parameters)
    works = [work for work in expected.works() if work]
    rate = measured_rate(expected) if any(work.forwards for work in works) else None
    seconds = {work.name: work.forwards / rate if rate else 0.0 for work in works}
    if expected.training:
        seconds[FINETUNE] = expected.training.seconds
    return told(expected, works, seconds, rate, cost_per_hour)


def measured_rate(expected: Expectation) -> float:
    """UNet forwards a second of the model that is there, as it is before finetuning."""
    from diffmining_core.typicality.speed import forwards_per_second

    device = choose_device(expected.parameters.device, expected.parameters.precision)
    pipeline = loaded(expected.parameters.root, expected.start, device)
    return forwards_per_second(pipeline, expected.geometry.size)


def told(
    expected: Expectation,
    works: Sequence[Work],
    seconds: Mapping[str, float],
    rate: float | None,
    cost_per_hour: float | None,
) -> list[Told]:
    """The lines of the table, first what the dataset has, last what it comes to."""
    images = expected.images
    indexed = sum(one.images for one in expected.dataset if one.shard)
    labels, shards = len(expected.labels), len(expected.dataset)
    known = f", {indexed:,} of them indexed already" if indexed else ""
    lines = [
        Told("images", images, f"{images:,}{known}"),
        Told("labels", labels, f"{labels:,}"),
        Told("shards", shards, f"{shards:,}"),
    ]
    if isinstance(expected, ExpectedTranslation):
        others = f"{expected.redrawn:,}, each under {len(expected.targets) - 1:,} labels"
        lines.append(Told("images redrawn", expected.redrawn, others))
    for work in works:
        lines.append(Told(work.name, _numbers(work, seconds[work.name]), _words(work, seconds)))
    forwards, at_most = sum(w.forwards for w in works), any(w.at_most for w in works)
    total = sum(seconds.values())
    stored = sum(work.bytes for work in works)
    most = " at most" if at_most else ""
    lines.append(Told("forwards", forwards, f"{forwards:,}{most}"))
    if rate:
        device = choose_device(expected.parameters.device, expected.parameters.precision).name
        said = f"{rate:,.3g} forwards a second, measured on this {device}"
        lines.append(Told("rate", rate, said))
    lines.append(Told("time", total, f"about {time_text(total)} of the UNet{most}"))
    lines.append(Told("disk", stored, f"about {size_text(stored)} at the root, without the page"))
    if expected.training:
        memory = sum(expected.training.memory.values())
        lines.append(Told("memory", memory, f"about {size_text(memory)} to finetune (estimated)"))
    if cost_per_hour is not None:
        lines.append(cost_told(total, cost_per_hour, most))
    return lines


def _numbers(work: Work, seconds: float) -> dict[str, Any]:
    return {
        "units": work.units,
        "there": work.there,
        "forwards": work.forwards,
        "at_most": work.at_most,
        "seconds": seconds,
        "bytes": round(work.bytes),
    }


def _words(work: Work, seconds: Mapping[str, float]) -> str:
    if not work.forwards:
        return "nothing: it is there"
    there = f" ({work.there:,} of {work.units:,} units are there)" if work.there else ""
    most = " at most" if work.at_most else ""
    took, stored = time_text(seconds[work.name]), size_text(work.bytes)
    return f"{work.forwards:,} forwards{most}, about {took} and {stored}{there}"
