"""The commands that look after a root: `status`, `verify`, `gc` and `storage check`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from cyclopts import App
from tqdm import tqdm

from diffmining_core.errors import InputError
from diffmining_core.store.garbage import Garbage, clear_garbage
from diffmining_core.store.status import StageStatus, current_root, run_root, run_status
from diffmining_core.store.storage_check import check_storage
from diffmining_core.store.verification import Damage, damaged_files, holdings
from flows.answers import Answer, command, epilogue

upkeep = App()
storage = App(
    name="storage",
    help="Look at a place for results.",
    help_epilogue=epilogue(["diffmining storage check s3://bucket/mined"]),
)

REASONS_SHOWN = 3
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
ROW = "{:<12}{:>8}{:>8}{:>9}{:>8}{:>11}{:>10}{:>13}"
"""The status table, 79 columns wide."""


@command(upkeep, "diffmining status mined", "diffmining status s3://bucket/mined --json")
def status(root: str) -> Answer:
    """Show what is done, missing, failed and set aside, and the time left.

    Parameters
    ----------
    root
        Folder or URL of the results.
    """
    opened, run = run_root(root)
    stages = run_status(opened, now := time.time())
    whose = {"root": opened.url, **run.identity}

    def say() -> None:
        print("\n".join(f"{name}: {value}" for name, value in whose.items()))
        print_status(stages, now)

    return Answer({**whose, "stages": [asdict(stage) for stage in stages]}, say)


def print_status(stages: Iterable[StageStatus], now: float) -> None:
    """The table of stages; below it what needs more words."""
    words = ("stage", "planned", "done", "missing", "failed", "set aside", "rate", "time left")
    print(f"\n{ROW.format(*words)}")
    remarks = []
    for stage in stages:
        print(ROW.format(*_cells(stage)).rstrip())
        remarks += _remarks(stage, now)
    if remarks:
        print()
    for remark in remarks:
        print(remark)


def _cells(stage: StageStatus) -> list[str | int]:
    left = stage.pace.seconds_left
    return [
        stage.stage,
        "?" if stage.planned is None else stage.planned,
        stage.done,
        stage.missing,
        len(stage.failed),
        "" if stage.set_aside is None else stage.set_aside,
        "" if stage.pace.per_hour is None else _rate(stage.pace.per_hour),
        "" if left is None else tqdm.format_interval(left),
    ]


def _rate(per_hour: float) -> str:
    rate, per = (per_hour / 60, "min") if per_hour >= 60 else (per_hour, "h")
    return f"{rate:.{0 if rate >= 100 else 1}f}/{per}"


def _remarks(stage: StageStatus, now: float) -> list[str]:
    since = f"{_moment(stage.pace.since)}, {age_text(now - stage.pace.since)} ago"
    remarks = []
    if stage.pace.state == "waiting":
        remarks.append(f"{stage.stage}: no result yet since it was planned ({since}).")
    elif stage.pace.state == "stopped":
        remarks.append(
            f"{stage.stage}: not running since {since}; run the same `diffmining mine` again to go "
            "on."
        )
    for key, reason in list(stage.failed.items())[:REASONS_SHOWN]:
        remarks.append(f"{stage.stage}/{key} failed: {reason}")
    if (more := len(stage.failed) - REASONS_SHOWN) > 0:
        remarks.append(f"{stage.stage}: {more} more failed; --json has all the reasons.")
    return remarks


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def age_text(seconds: float) -> str:
    """Seconds in the largest unit of which there are two."""
    for unit, name in (("d", "days"), ("h", "hours"), ("m", "minutes")):
        if seconds >= 2 * SECONDS[unit]:
            return f"{seconds / SECONDS[unit]:.0f} {name}"
    return f"{max(seconds, 0):.0f} seconds"


@command(upkeep, "diffmining verify mined", "diffmining verify mined --json")
def verify(root: str) -> Answer:
    """Read all results again and name what does not match its checksum.

    Parameters
    ----------
    root
        Folder or URL of the results.
    """
    opened = current_root(root)
    held = holdings(opened)
    damage = list(held.damage)
    for found in damage:
        _print_damage(found)
    with tqdm(total=held.bytes, desc="verify", unit="B", unit_scale=True) as bar:
        for found in damaged_files(opened, held.files, bar.update):
            damage.append(found)
            with bar.external_write_mode():
                _print_damage(found)

    def say() -> None:
        print(
            f"{held.units} units, {len(held.files)} files, {size_text(held.bytes)} reread; "
            f"{len(damage)} damaged."
        )
        if damage:
            print(
                "Run the same `diffmining mine` again: it makes damaged results anew where it "
                "meets them; with `--mode verify` it finds and mends all."
            )

    document = {
        "root": opened.url,
        "units": held.units,
        "files": len(held.files),
        "bytes": held.bytes,
        "damaged": [asdict(one) for one in damage],
    }
    return Answer(document, say, status=1 if damage else 0)


def _print_damage(damage: Damage) -> None:
    print(f"damaged {damage.stage}/{damage.key}: {damage.sentence}")


@command(
    upkeep,
    "diffmining gc mined --older-than 2d",
    "diffmining gc s3://bucket/mined --older-than 7d --delete",
)
def gc(root: str, *, older_than: str = "7d", delete: bool = False) -> Answer:
    """List what is no longer any use.

    That is attempts that no result names, half-written files, and records of repaired units.
    Nothing is removed without --delete.

    Parameters
    ----------
    root
        Folder or URL of the results.
    older_than
        Age from which it can go: a number with s, m, h, d or w. Give more than a running `mine`
        needs to store one unit.
    delete
        Remove what is listed.
    """
    opened = current_root(root)
    listed, ages = [], []
    for item, age in clear_garbage(opened, seconds_of(older_than), delete):
        listed.append(item)
        ages.append(age)
        print(
            f"{'removed' if delete else 'can go'} {item.rel}: {item.kind}, {item.files} files, "
            f"{size_text(item.bytes)}, {age_text(age)} old"
        )
    document = {
        "root": opened.url,
        "removed": delete,
        "leftovers": [
            {**asdict(item), "age_seconds": age} for item, age in zip(listed, ages, strict=True)
        ],
    }
    return Answer(document, lambda: print(garbage_sentence(listed, older_than, delete)))


def garbage_sentence(listed: Sequence[Garbage], older_than: str, delete: bool) -> str:
    """How much can go, or has gone."""
    files, size = sum(item.files for item in listed), sum(item.bytes for item in listed)
    end = " removed." if delete else "; --delete removes them." if listed else "."
    return (
        f"{len(listed)} leftovers older than {older_than} in {files} files, {size_text(size)}{end}"
    )


def seconds_of(age: str) -> float:
    """The seconds of an age such as 7d or 12h; InputError for anything else."""
    if not (parts := re.fullmatch(r"(\d{1,9})([smhdw])", age.strip())):
        raise InputError(
            "--older-than must be a number with s, m, h, d or w, of at most 9 digits, but is "
            f"{age[:20]!r}"
        )
    return float(int(parts[1]) * SECONDS[parts[2]])


def size_text(count: float) -> str:
    """Bytes with their unit."""
    return f"{tqdm.format_sizeof(count)}B"


@command(storage, "diffmining storage check s3://bucket/mined")
def check(url: str) -> Answer:
    """Try out what runs need of a place: a hidden folder is written there, and removed in the end.

    Parameters
    ----------
    url
        Folder or URL that results may go to.
    """
    findings = []
    for finding in check_storage(url):
        findings.append(finding)
        print(f"{'ok' if finding.holds else 'NO':2}  {finding.name}: {finding.sentence}")
    failed = sum(not finding.holds for finding in findings)

    def say() -> None:
        if failed:
            print(f"{failed} of {len(findings)} do not hold at {url}.")
        else:
            print(f"All {len(findings)} hold: {url} can keep results.")

    document = {"url": url, "findings": [asdict(finding) for finding in findings]}
    return Answer(document, say, status=1 if failed else 0)
