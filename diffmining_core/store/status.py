"""How far a run has come, told from listings of its root: nothing has to run to be asked.

In: manifests, plans and notes of failures. Out: for each stage what is done, missing and failed,
and the time left at the rate of the last results.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import (
    CorruptFileError,
    Manifest,
    manifest_entries,
    read_manifest,
    stages,
)
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.runs import (
    RUN_FILE,
    RunRecord,
    check_current,
    failures,
    planned,
    read_run,
)

STAGES = (
    "index",
    "index_train",
    "dataset",
    "dataset_train",
    "finetune",
    "generated",
    "typicality",
    "patches",
    "selection",
    "refinement",
    "features",
    "clusters",
    "evaluation",
    "signs",
    "report",
    "study",
    "localization",
    "translation",
    "cotypicality",
    "sequences",
    "joint_features",
    "joint_clusters",
    "parallel_report",
    "night",
)
"""In the order of the data's path."""

SETTING_ASIDE = ("index", "index_train", "typicality")
"""The stages that open images, and so may set some aside."""

RECENT = 50
"""Results that the rate is taken over."""

LEAST_QUIET = 300.0
"""Seconds without a result before a stage may count as stopped."""

READERS = 16


State = Literal["finished", "running", "waiting", "stopped", "unplanned"]


@dataclass(frozen=True)
class Pace:
    """Whether and how fast results come.

    state: finished, nothing is missing; running; waiting, no result yet since the stage was
    planned, so that no rate can be told; stopped, no result for long; unplanned, no result for long
    and no plan to tell what is missing. since: the last result or plan, in seconds since 1970.
    per_hour: units, None unless running. seconds_left: None also where there is no plan.
    """

    state: State
    since: float
    per_hour: float | None = None
    seconds_left: float | None = None


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is, in units.

    planned: what the last run wanted, the sum of done, missing and failed; None where no run has
    noted it, and then all that is published is done. others: published units outside the plan.
    failed: reasons by key. set_aside: images, None for a stage that opens none.
    """

    stage: str
    planned: int | None
    done: int
    missing: int
    others: int
    failed: Mapping[str, str]
    set_aside: int | None
    pace: Pace


def run_root(url: str) -> tuple[Root, RunRecord]:
    """The root of a run to read, and whose it is; InputError if this version can read none there.

    Results of older versions are shown too.
    """
    root = open_root(url, create=False)
    if (run := read_run(root)) is None:
        raise InputError(
            f"{root.url} holds no run's results: it has no {RUN_FILE}; give the root that was "
            "given to `diffmining mine`"
        )
    return root, run


def current_root(url: str) -> Root:
    """The root of a run to check or clean up; InputError also for results of older versions."""
    root, run = run_root(url)
    check_current(root, run)
    return root


def run_status(root: Root, now: float) -> list[StageStatus]:
    """How far each stage is that was planned, published or failed, in the data's order."""
    plans = {e.name.removesuffix(".json"): e.modified for e in root.entries("plans")}
    names = {*stages(root), *plans, *root.names("failures")}
    ordered = sorted(
        (name for name in names if not name.startswith(".")),
        key=lambda name: (STAGES.index(name) if name in STAGES else len(STAGES), name),
    )
    with ThreadPoolExecutor(max(1, len(ordered))) as pool:
        return list(pool.map(lambda n: _stage_status(root, n, plans.get(n, 0.0), now), ordered))


def _stage_status(root: Root, stage: str, plan_time: float, now: float) -> StageStatus:
    plan = planned(root, stage)
    times = _published_times(root, stage)
    noted = failures(root, stage).items()
    failed = {key: failure.reason for key, failure in noted if key not in times}
    wanted = times.keys() | failed.keys()
    if plan:
        wanted = plan[0]
        failed = {key: why for key, why in failed.items() if key in wanted}
    done = wanted & times.keys()
    missing = len(wanted) - len(done) - len(failed)
    return StageStatus(
        stage=stage,
        planned=len(wanted) if plan else None,
        done=len(done),
        missing=missing,
        others=len(times.keys() - wanted),
        failed=failed,
        set_aside=_set_aside(root, stage, done) if stage in SETTING_ASIDE else None,
        pace=_pace([times[key] for key in done], plan_time if plan else None, missing, now),
    )


def _published_times(root: Root, stage: str) -> dict[str, float]:
    """When each unit was published, by key, from one listing."""
    entries = manifest_entries(root, stage).items()
    return {key: entry.modified for key, entry in entries if not entry.is_folder}


def _pace(times: Iterable[float], plan_time: float | None, missing: int, now: float) -> Pace:
    """The pace of a stage planned at this time, of results published at these times."""
    results = sorted(times)
    if plan_time is None:
        signs = results
    elif not missing:
        return Pace("finished", results[-1] if results else plan_time)
    else:  # what an earlier run published tells nothing of this one's pace
        signs = [plan_time, *(time for time in results if time >= plan_time)]
        if len(signs) == 1:
            return Pace("waiting", plan_time)
    signs = signs[-RECENT - 1 :]
    # Several workers may publish together, so that the longest gap tells more than the mean.
    longest = max((later - earlier for earlier, later in pairwise(signs)), default=0.0)
    last = signs[-1] if signs else 0.0
    if now - last > max(LEAST_QUIET, 3 * longest):
        return Pace("stopped" if missing else "unplanned", last)
    seconds_each = max(last - signs[0], 1.0) / max(len(signs) - 1, 1)
    left = missing * seconds_each if missing else None
    return Pace("running", last, 3600 / seconds_each, left)


def _set_aside(root: Root, stage: str, keys: Iterable[str]) -> int:
    """Images set aside; those that several units of the same inputs met count once.

    Where the dataset's one manifest tells it, those of a thousand shards are not read.
    """
    dataset = _dataset(root)
    if dataset and stage == "index" and "set_aside" in dataset.counts:
        return dataset.counts["set_aside"]
    if dataset and stage == "typicality" and dataset.counts.get("declared") == 0:
        return 0  # indexing has opened every image
    most: dict[str, int] = {}
    for manifest in _manifests(root, stage, keys):
        images = manifest.inputs[0] if manifest.inputs else manifest.key
        most[images] = max(most.get(images, 0), manifest.counts.get("set_aside", 0))
    return sum(most.values())


def _dataset(root: Root) -> Manifest | None:
    """The manifest of the dataset that the last run wanted."""
    plan = planned(root, "dataset")
    return next(_manifests(root, "dataset", plan[0]), None) if plan else None


def _manifests(root: Root, stage: str, keys: Iterable[str]) -> Iterator[Manifest]:
    def read(key: str) -> Manifest | None:
        try:
            return read_manifest(root, stage, key)
        except CorruptFileError:
            return None  # `diffmining verify` names it

    with ThreadPoolExecutor(READERS) as pool:
        yield from (manifest for manifest in pool.map(read, keys) if manifest)
