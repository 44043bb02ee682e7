"""Studies that mine in several ways side by side: of timesteps, of noise, and of patch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from prefect import flow

from diffmining_core.report.sides import AS_MINED, NOISE, PATCH_SIZES, TIMESTEPS
from diffmining_core.store.roots import open_root
from diffmining_core.store.runs import plan_stage
from flows.parameters import (
    MinedStudyParameters,
    NoiseStudyParameters,
    PatchSizeStudyParameters,
    TimestepStudyParameters,
)
from flows.run_ledger import RunLedger
from flows.selection import choose, pick_patches
from flows.study.prepared import Mined, Prepared, announce, check, mine_sides, prepare, study_facts
from flows.typicality import measure
from tasks.report import publish_page
from tasks.study_sides import Side, SidesStudy, studied_numbers, study_sides

FREE, FIXED_NOISE, FIXED_TIMESTEP = "both drawn", "fixed noise", "fixed timestep"


@flow(name="study timesteps", flow_run_name="study timesteps {parameters.title}", log_prints=True)
def study_timesteps(parameters: TimestepStudyParameters) -> dict[str, Any]:
    """Mine with typicality of one narrow range of timesteps at a time.

    Returns the numbers of the page `study-timesteps.html` at the root.
    """
    check(parameters)
    run = RunLedger()
    prepared = prepare(parameters, run)
    low, high = parameters.settings().t_range
    ranges = {_range_name(*bounds): bounds for bounds in parameters.ranges()}
    changes: dict[str, dict[str, Any]] = {AS_MINED: {}}
    changes |= {name: {"t_range": list(bounds)} for name, bounds in ranges.items()}
    mined = mine_sides(parameters, prepared, changes, run)
    sides = [_side(AS_MINED, _middle(low, high), AS_MINED, mined[AS_MINED])]
    sides += [
        _side(name, _middle(*bounds), "range", mined[name]) for name, bounds in ranges.items()
    ]
    return _studied(parameters, prepared, TIMESTEPS, sides, _to_first(sides), run)


@flow(name="study noise", flow_run_name="study noise {parameters.title}", log_prints=True)
def study_noise(parameters: NoiseStudyParameters) -> dict[str, Any]:
    """Mine under draws of several seeds: of noise and timestep, with either of them fixed.

    Returns the numbers of the page `study-noise.html` at the root.
    """
    from diffmining_core.typicality.draws import NOISE as NOISE_FIXED
    from diffmining_core.typicality.draws import TIMESTEP, fixed_timestep  # these bring torch along

    check(parameters)
    run = RunLedger()
    prepared = prepare(parameters, run)
    seeds = [parameters.seed + number for number in range(parameters.seeds)]
    ways: dict[str, dict[str, Any]] = {
        FREE: {},
        FIXED_NOISE: {"fixed": NOISE_FIXED},
        FIXED_TIMESTEP: {"fixed": TIMESTEP},
    }
    names: dict[str, tuple[str, int]] = {}
    changes: dict[str, dict[str, Any]] = {}
    for way, fixed in ways.items():
        for seed in seeds:
            name = f"{way}, seed {seed}"
            # The draws of the run's own seed are those that mining has made already.
            own = seed == parameters.seed and way == FREE
            names[name] = way, seed
            changes[name] = {} if own else {"draws_seed": seed, **fixed}
    mined = mine_sides(parameters, prepared, changes, run)
    t_range = parameters.settings().t_range
    sides = []
    for name, (way, seed) in names.items():
        at = fixed_timestep(seed, t_range) if way == FIXED_TIMESTEP else seed
        said = f"{seed}: t = {at}" if way == FIXED_TIMESTEP else f"{seed}: {_SHORT[way]}"
        sides.append(_side(said, at, way, mined[name]))
    pairs = [
        pair for pair in combinations(range(len(sides)), 2)
        if sides[pair[0]].group == sides[pair[1]].group
    ]  # fmt: skip
    return _studied(parameters, prepared, NOISE, sides, pairs, run)


_SHORT = {FREE: "drawn", FIXED_NOISE: "one noise"}


@flow(name="study patch-sizes", flow_run_name="study patches {parameters.title}", log_prints=True)
def study_patch_sizes(parameters: PatchSizeStudyParameters) -> dict[str, Any]:
    """Cut the same maps into patches of several sizes.

    Returns the numbers of the page `study-patch-sizes.html` at the root.
    """
    check(parameters)
    run = RunLedger()
    prepared = prepare(parameters, run)
    size, cell = prepared.geometry.size, prepared.geometry.cell
    maps = {"typicality": (prepared.dataset, prepared.model)}
    (keys,) = measure(parameters, maps, size, run)
    options = parameters.patch_options(size, cell)
    sides = []
    for patch_size in parameters.sides(size):
        with run.stage(f"patches of {patch_size} px"):
            picked = pick_patches(parameters, keys, {**options, "size": patch_size}, run)
            chosen_from = [(prepared.dataset, [picked[key] for key in keys])]
            (selection,) = choose(parameters, chosen_from, run)
        sides.append(_side(f"{patch_size} px", patch_size, "size", Mined(tuple(keys), selection)))
    as_mined = next(place for place, side in enumerate(sides) if side.at == options["size"])
    pairs = [(place, as_mined) for place in range(len(sides)) if place != as_mined]
    return _studied(parameters, prepared, PATCH_SIZES, sides, pairs, run)


def _studied(
    parameters: MinedStudyParameters,
    prepared: Prepared,
    what: str,
    sides: Sequence[Side],
    pairs: Sequence[tuple[int, int]],
    run: RunLedger,
) -> dict[str, Any]:
    """Measure the sides and draw the page; returns the numbers and what the run did."""
    root, name = parameters.root, what.replace(" ", "-")
    title = {
        TIMESTEPS: "Timesteps of mining {}",
        NOISE: "Noise and timesteps in mining {}",
        PATCH_SIZES: "Patch sizes in mining {}",
    }[what]
    with run.stage("study"):
        study = SidesStudy(
            what=what,
            title=title.format(parameters.dataset_name),
            truth=prepared.truth,
            dataset=tuple(prepared.dataset),
            sides=tuple(sides),
            pairs=tuple(pairs),
            size=prepared.geometry.size,
            cell=prepared.geometry.cell,
            facts=study_facts(parameters, prepared),
        )
        plan_stage(open_root(root), study.unit.stage, [study.unit.key])
        (done,) = run.add([study_sides(root, study)])
        page = publish_page(root, done.key, study.unit.stage, f"study-{name}.html")
    numbers = studied_numbers(root, done.key)
    announce(parameters, name, numbers["table"], page)
    return {**numbers, **run.summary(), "page": page}


def _side(name: str, at: float, group: str, mined: Mined) -> Side:
    return Side(name, at, group, mined.typicality, mined.selection)


def _to_first(sides: Sequence[Side]) -> list[tuple[int, int]]:
    return [(place, 0) for place in range(1, len(sides))]


def _middle(low: float, high: float) -> float:
    """The timestep in the middle of a range."""
    return round(500 * (low + high), 1)


def _range_name(low: float, high: float) -> str:
    """Timesteps as a person says them, the last one included."""
    return f"{round(1000 * low)}–{round(1000 * high) - 1}"
