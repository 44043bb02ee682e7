"""What runs say of themselves at a root: whose it is, what was planned, what failed.

`run.json` claims the root for one dataset, and tells the format of its results.
`plans/<stage>.json` has the units that the last run wanted, and `failures/<stage>/<key>.json` why
one was not made; results depend on neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from pydantic import TypeAdapter
from pydantic_core import from_json

from diffmining_core.errors import InputError
from diffmining_core.secrets import without_secrets
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import Root
from diffmining_core.store.units import canonical_json

RUN_FILE = "run.json"
RUN_FORMAT = 2
"""The format in which this version stores results; raised when older ones could be misread."""


@dataclass(frozen=True)
class RunRecord:
    """Whose results a root holds (a few names and values), and their format."""

    identity: Mapping[str, str]
    format: int


@dataclass(frozen=True)
class _Plan:
    keys: frozenset[str]
    planned: datetime


_stored_plan = TypeAdapter(_Plan)


def plan_stage(root: Root, stage: str, keys: Iterable[str]) -> None:
    """Note which units of a stage this run wants, in place of what the last run wanted."""
    wanted = set(keys)
    if (last := planned(root, stage)) is None or last[0] != wanted:
        plan = {"keys": sorted(wanted), "planned": _now()}
        root.write_bytes(_plan_path(stage), canonical_json(plan))


def planned(root: Root, stage: str) -> tuple[set[str], float] | None:
    """The keys that the last run wanted of a stage, and since when (seconds since 1970).

    None where no run has planned the stage, or what it wrote cannot be read.
    """
    try:
        plan = _stored_plan.validate_json(root.read_bytes(_plan_path(stage)))
        return set(plan.keys), plan.planned.timestamp()
    except (FileNotFoundError, IsADirectoryError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class Failure:
    """Why a unit could not be made; `damaged` is the stage and key of a stored unit at fault.

    noted: when (UTC, ISO 8601); of a new one, when it is stored.
    """

    reason: str
    damaged: tuple[str, str] | None = None
    noted: str = ""


def note_failure(root: Root, stage: str, key: str, failure: Failure) -> None:
    """Note why a unit could not be made; it counts while the unit has no manifest."""
    record = {"reason": without_secrets(failure.reason), "time": failure.noted or _now()}
    if failure.damaged:
        record["damaged"] = "/".join(failure.damaged)
    root.write_bytes(f"failures/{stage}/{key}.json", canonical_json(record))


def failures(root: Root, stage: str) -> dict[str, Failure]:
    """Why units of a stage that are still not done failed last, by key."""
    entries = root.entries(f"failures/{stage}")
    noted = {entry.name.removesuffix(".json") for entry in entries if not entry.is_folder}
    if not noted:
        return {}
    open_ones = sorted(key for key in noted - published(root, stage) if not key.startswith("."))
    records = root.read_all([f"failures/{stage}/{key}.json" for key in open_ones])
    return {key: _failure(record) for key, record in zip(open_ones, records, strict=True)}


def _failure(record: bytes) -> Failure:
    try:
        noted = from_json(record)
        stage, _, key = str(noted.get("damaged", "")).partition("/")
        damaged = (stage, key) if stage and key else None
        return Failure(str(noted["reason"]), damaged, str(noted.get("time", "")))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Failure("the note of the reason cannot be read")


def _plan_path(stage: str) -> str:
    return f"plans/{stage}.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def open_run(root: Root, identity: Mapping[str, str]) -> None:
    """Claim a fresh root for the run with this identity, or check that it is the same run's.

    identity: a few names and values, such as the dataset's folder, that must not mix at one root.
    InputError if the root holds another run's results, those of another version, or files that are
    no run's.
    """
    stored = read_run(root)
    if stored is None:
        _check_fresh(root)
        record = RunRecord(identity, RUN_FORMAT)
        root.create_bytes(RUN_FILE, canonical_json(asdict(record)))
        stored = read_run(root) or record
    check_current(root, stored)
    _check_same_run(root, stored.identity, identity)


def read_run(root: Root) -> RunRecord | None:
    """Whose root it is, None for a fresh one.

    InputError for results of a newer version, and for a record that cannot be read.
    """
    try:
        content = from_json(root.read_bytes(RUN_FILE))
    except FileNotFoundError:
        return None
    except (IsADirectoryError, ValueError):
        content = None
    match content:
        case {"format": bool()}:  # which is an int
            pass
        case {"format": int(found)} if found > RUN_FORMAT:
            raise InputError(
                f"{root.url} holds results of format {found}, which a newer diffmining stored; "
                f"this version knows formats up to {RUN_FORMAT}: upgrade it, or give another root"
            )
        case {"format": int(found), "identity": dict(identity)} if found > 0 and all(
            isinstance(value, str) for value in identity.values()
        ):
            return RunRecord(identity, found)
    raise InputError(
        f"{root.url_of(RUN_FILE)} cannot be read as the record of a run; restore it from a copy, "
        "or give another root"
    )


def check_current(root: Root, run: RunRecord) -> None:
    """InputError for results of an older version, which are only shown, never added to."""
    if run.format < RUN_FORMAT:
        raise InputError(older_format(root, run))


def older_format(root: Root, run: RunRecord) -> str:
    """What to do about results of an older version."""
    return (
        f"{root.url} holds results of format {run.format}, which an older diffmining stored; this "
        f"version stores format {RUN_FORMAT} and leaves older results as they are: mine again into "
        "a new root"
    )


def _check_fresh(root: Root) -> None:
    # A new file system has lost+found; desktops and our own unfinished writes leave dot files.
    foreign = [n for n in root.names() if n != "lost+found" and not n.startswith(".")]
    if foreign and RUN_FILE not in foreign:  # else another process has just claimed it
        raise InputError(
            f"{root.url} holds files that are no run's results ({_some(foreign)}); give an empty "
            "or a new folder"
        )


def _check_same_run(root: Root, stored: Mapping[str, str], asked: Mapping[str, str]) -> None:
    names = sorted(n for n in stored.keys() | asked.keys() if stored.get(n) != asked.get(n))
    if names:
        holds = " and ".join(f"{name} {stored.get(name, '(none)')}" for name in names)
        asks = " and ".join(f"{name} {asked.get(name, '(none)')}" for name in names)
        raise InputError(
            f"root {root.url} holds the results of {holds}; this run asks for {asks}; give another "
            "root"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
