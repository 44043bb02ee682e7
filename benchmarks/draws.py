"""How many forwards the right top patches take: draws spread in four ways, and in rounds.

    python -m benchmarks.draws --root ROOT --images 250 --name demo
    python -m benchmarks.draws --root ROOT --images 250 --name demo --seeds 3   # means of three

Takes the finetuned model, images, prompts and patches of a mined root. Right are the patches that
many more draws of a seed of their own select. Compared are the numbers of draws after each round
of adaptive mining, for each way to spread them; and, from the same maps, adaptive mining itself,
whose report's expected agreement stands beside the one that is measured.

All images of one shape share their draws, so that one seed's numbers are those of one choice of
them. Maps are kept in `--work` as they are finished: the same command goes on where it stopped.
The table and the plot go to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from benchmarks.draws_chart import draw
from benchmarks.draws_table import COLOURS, IN_ROUNDS, SHARES, Adaptive, Plain, Table
from benchmarks.speed import machine_name
from benchmarks.speed_table import RESULTS
from diffmining_core.errors import ImageError, InputError
from diffmining_core.evaluation.agreement import same_patches
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.files import ModelSource
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.patches.refinement import (
    SHARE,
    Row,
    chances,
    distances,
    ends_of_top,
    highest_with_errors,
    image_rows,
    undecided,
)
from diffmining_core.patches.scoring import PATCH_SCHEMA, shard_patches
from diffmining_core.patches.selection import TopPatches
from diffmining_core.results.references import results_of, summarised_report
from diffmining_core.store.ledger import Attempt, complete, finished, published
from diffmining_core.store.maps import RaggedMaps, read_maps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit
from diffmining_core.typicality import ALGO
from diffmining_core.typicality.draws import PAIRED
from diffmining_core.typicality.rounds import combined, rounds, windowed
from diffmining_core.typicality.shard import TypicalityOptions, rows_of_images, shard_typicality
from flows.parameters import MineParameters
from tasks.index import good_images
from tasks.models import Device, ModelReference, choose_device, loaded
from tasks.typicality import packed

STAGE = "draws"
"""Of the maps that are kept."""

CONVERGED_SEED = 1_000_000
"""Added to the run's seed: that of the draws of the converged maps, which no other has."""


@dataclass(frozen=True)
class Settings:
    """What is measured of a mined root."""

    images: int
    converged: int
    """Draws of the maps that say which patches are right."""
    draws: int
    """The most of the draws that are compared with them."""
    tops: tuple[int, ...]
    seeds: int = 1


QUICK = Settings(images=4, converged=12, draws=12, tops=(1, 3))
"""Whether everything works."""


class Mined(NamedTuple):
    """What is taken of a mined root."""

    root: Root
    model: ModelReference
    images: list[ShardImage]
    options: TypicalityOptions
    """Of mining, with the windows that adaptive mining takes the errors of."""
    patches: dict[str, Any]
    """Of `shard_patches`."""

    @property
    def rows(self) -> list[Row]:
        """Each image under each of its labels."""
        return [(image.image_id, image.label) for image in self.images]


@dataclass(frozen=True)
class Followed:
    """Adaptive mining to its end, from maps that are there for any number of draws."""

    draws: dict[Row, int]
    forwards: int
    selection: pa.Table
    expected: float


class Part(NamedTuple):
    """What one round measures anew, and what a person calls it."""

    name: str
    options: TypicalityOptions

    @property
    def draws(self) -> int:
        """Those of this round alone."""
        return self.options.draws - self.options.after


def main() -> None:
    """Measure what is missing, print and save the table and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", required=True, help="a mined root with a finetuned model")
    parser.add_argument("--images", type=int, default=250, help="in all, as many of each label")
    parser.add_argument("--converged", type=int, default=400, help="draws that say what is right")
    parser.add_argument("--draws", type=int, default=100, help="the most that are compared")
    parser.add_argument("--tops", default="10,50", help="patches of each label, with commas")
    parser.add_argument("--seeds", type=int, default=1, help="of the draws, for means over them")
    parser.add_argument("--name", required=True, help="of the saved table: draws-NAME")
    parser.add_argument("--work", help="folder or URL that keeps the maps; ROOT-draws if unset")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--quick", action="store_true", help="very small: does everything work?")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the tables")
    given = parser.parse_args()
    if given.quick and given.results == RESULTS:
        parser.error("a quick run's numbers say nothing of draws: give them another --results")
    tops = tuple(int(top) for top in given.tops.split(","))
    settings = Settings(given.images, given.converged, given.draws, tops, given.seeds)
    if given.quick:
        settings = QUICK
    elif min(settings.draws, settings.converged) < 4:
        parser.error("--draws and --converged should be 4 or more: fewer have no pairs to compare")

    mined = mined_there(open_root(given.root), settings.images)
    work = open_root(given.work or f"{given.root.rstrip('/')}-draws")
    device = choose_device(given.device)
    measure_missing(mined, work, all_parts(mined, settings), device)
    found = Table(
        machine=machine_name(torch.device(device.name)),
        command=command(settings, given.root, given.name),
        facts=facts(mined, settings, device),
        **compare(mined, work, settings),
    )
    found.save(given.results, f"draws-{given.name}")
    draw(found.panels(), found.words(), given.results, f"draws-{given.name}")
    print(f"\n{found.markdown()}")


def command(settings: Settings, root: str, name: str) -> str:
    """What measures the same again; the root by its name alone."""
    return (
        f"python -m benchmarks.draws --root {root.rstrip('/').rpartition('/')[2]} "
        f"--images {settings.images} --converged {settings.converged} --draws {settings.draws} "
        f"--tops {','.join(map(str, settings.tops))} --seeds {settings.seeds} --name {name}"
    )


def facts(mined: Mined, settings: Settings, device: Device) -> dict[str, Any]:
    """What the numbers depend on."""
    labels = Counter(image.label for image in mined.images)
    return {
        "images": len(rows_of_images(mined.images)),
        "labels": len(labels),
        "images of each label": min(labels.values()),
        "image size": f"{mined.options.size} px",
        "patch size": f"{mined.patches['size']} px",
        "patches per image": mined.patches["per_image"],
        "converged": f"{settings.converged} {PAIRED} draws of another seed",
        "most draws": settings.draws,
        "seeds": settings.seeds,
        "precision": device.dtype,
        "torch": torch.__version__,
        "compared": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def mined_there(root: Root, count: int) -> Mined:
    """The model, options and patches of a root's page, and `count` of its images.

    InputError for a root without a page of a finetuned model.
    """
    key = summarised_report(root)
    results = results_of(root, key) if key else None
    if results is None or results.finetune is None:
        raise InputError(
            f"{root.url} should be the root of a finished run of mine with a finetuned model, but "
            f"has {'no finetuned model' if results else 'no page'}; mine a dataset there first."
        )
    digest = str(finished(root, "finetune", results.finetune).facts["digest"])
    selection = finished(root, "selection", results.selection)
    patches = dict(finished(root, "patches", selection.inputs[-1]).parameters)
    stored = finished(root, "typicality", results.typicality[0]).parameters
    mining = MineParameters(dataset=root.url, root=root.url, patch_size=patches["size"])
    rows = [image for shard in results.dataset for image in good_images(root, shard)]
    return Mined(
        root,
        ModelReference(ModelSource(""), digest, results.finetune),
        of_each_label(rows, count),
        TypicalityOptions(
            PromptTemplate.from_options(stored),
            size=stored["size"],
            draws=0,  # each measurement says how many
            t_range=(stored["t_range"][0], stored["t_range"][1]),
            seed=stored["seed"],
            window=mining.first_round(stored["size"], patches["cell"])["window"],
        ),
        patches,
    )


def of_each_label(rows: Iterable[ShardImage], count: int) -> list[ShardImage]:
    """As many images of each label, its first by image id: about `count` in all, one at least."""
    by_label: dict[str, dict[str, ShardImage]] = {}
    for row in sorted(rows, key=lambda row: (row.label, row.image_id, row.uri)):
        by_label.setdefault(row.label, {}).setdefault(row.image_id, row)
    fewest = min(len(of_label) for of_label in by_label.values())
    each = min(max(1, count // len(by_label)), fewest)
    chosen = [row for of_label in by_label.values() for row in list(of_label.values())[:each]]
    return sorted(chosen, key=lambda row: (row.image_id, row.label))


def converged(mined: Mined, settings: Settings) -> list[TypicalityOptions]:
    """The rounds of the maps that say what is right."""
    seed = mined.options.seed + CONVERGED_SEED
    return in_parts(replace(mined.options, draws_seed=seed, spread=PAIRED), settings.converged)


def variants(mined: Mined, settings: Settings) -> dict[tuple[int, str], list[TypicalityOptions]]:
    """The rounds of the maps that are compared, by seed and spread of their draws."""
    seeds = range(mined.options.seed, mined.options.seed + settings.seeds)
    return {
        (seed, spread): in_parts(
            replace(mined.options, draws_seed=seed, spread=spread), settings.draws
        )
        for seed in seeds
        for spread in COLOURS
    }


def in_parts(options: TypicalityOptions, most: int) -> list[TypicalityOptions]:
    """What every round up to `most` draws measures anew."""
    return [
        replace(options, after=after, draws=draws) for after, draws in pairwise([0, *rounds(most)])
    ]


def all_parts(mined: Mined, settings: Settings) -> list[Part]:
    """Every round of all that is measured."""
    wanted = [Part("converged", part) for part in converged(mined, settings)]
    for (seed, spread), parts in variants(mined, settings).items():
        wanted += [Part(f"{spread}, seed {seed}", part) for part in parts]
    return wanted


def measure_missing(mined: Mined, work: Root, wanted: Sequence[Part], device: Device) -> None:
    """Measure and keep, round by round, the maps that are not there."""
    there = published(work, STAGE)
    missing = [part for part in wanted if maps_unit(mined, part.options).key not in there]
    if not missing:
        return
    total, left = (
        forwards_of(mined.rows) * sum(part.draws for part in parts) for parts in (wanted, missing)
    )
    pipeline = loaded(mined.root.url, mined.model, device)
    with tqdm(total=total, initial=total - left, unit=" forwards") as bar:
        for name, options in missing:

            def produce(attempt: Attempt, options: TypicalityOptions = options) -> None:
                maps, unusable = shard_typicality(
                    pipeline, mined.images, options, on_forwards=bar.update
                )
                for reason in unusable.values():
                    raise ImageError(reason)
                write_maps(attempt, packed(mined.images, maps, options))

            bar.set_description(f"{name}, N = {options.draws}")
            complete(work, maps_unit(mined, options), produce, device.name)


def maps_unit(mined: Mined, part: TypicalityOptions) -> Unit:
    """The unit of the images' maps over the draws of one round alone."""
    images = hashlib.sha256(repr(mined.rows).encode()).hexdigest()
    return Unit(STAGE, ALGO, (mined.model.digest, images), asdict(part))


def maps_by_draws(
    mined: Mined, work: Root, parts: Sequence[TypicalityOptions]
) -> dict[int, RaggedMaps]:
    """The maps over all draws up to the end of each round."""
    alone = (read_maps(work, finished(work, STAGE, maps_unit(mined, part).key)) for part in parts)
    return dict(zip((part.draws for part in parts), accumulate(alone, combined), strict=True))


def compare(mined: Mined, work: Root, settings: Settings) -> dict[str, Any]:
    """The rows of the table, from the maps that are kept."""
    window = mined.options.window or 1
    right = maps_by_draws(mined, work, converged(mined, settings))[settings.converged]
    right_highest = scored(right, mined.patches)
    right_tops = {top: top_patches(right_highest, top) for top in settings.tops}
    images, of_a_draw = len(rows_of_images(mined.images)), forwards_of(mined.rows)
    plain, adaptive = [], []
    for (seed, spread), parts in variants(mined, settings).items():
        maps = maps_by_draws(mined, work, parts)
        highest = {draws: scored(one, mined.patches) for draws, one in maps.items()}
        for draws, one in maps.items():
            error = squared_error(one, right, window)
            for top, right_top in right_tops.items():
                overlap = same_patches(top_patches(highest[draws], top), right_top)
                forwards = of_a_draw * draws / images
                plain.append(Plain(seed, spread, draws, top, forwards, overlap, error))
        for share in SHARES if spread in IN_ROUNDS else ():
            for top, right_top in right_tops.items():
                run = followed(highest, mined.rows, top, share)
                adaptive.append(
                    Adaptive(
                        seed,
                        spread,
                        share,
                        top,
                        draws=fmean(run.draws.values()),
                        forwards=run.forwards / images,
                        cost=run.forwards / (of_a_draw * settings.draws),
                        overlap=same_patches(run.selection, right_top),
                        expected=run.expected,
                    )
                )
    return {"plain": plain, "adaptive": adaptive, "converged_error": own_error(right, window)}


def scored(maps: RaggedMaps, patches: Mapping[str, Any]) -> pa.Table:
    """The highest patches of all images, with their standard errors."""
    return highest_with_errors(shard_patches(maps, **patches), maps, patches["cell"])


def top_patches(highest: pa.Table, top: int) -> pa.Table:
    """The first of each label."""
    pairs = zip(highest["image_id"].to_pylist(), highest["label"].to_pylist(), strict=True)
    uris = dict.fromkeys(pairs, "")  # the highest depend on no address, and on no seed
    of_all = TopPatches.empty(top, seed=0).add(highest.select(PATCH_SCHEMA.names), uris, "")
    return of_all.table()


def squared_error(maps: RaggedMaps, right: RaggedMaps, window: int) -> float:
    """Mean over all windows of all maps, of the scores against those of the same maps, converged.

    Scores are means over `window` × `window` positions. The converged maps' own error is in it.
    """
    return _mean_of_windows(
        (windowed(maps.map(i) - right.map(i), window) ** 2 for i in range(len(maps.image_id))),
        window,
    )


def own_error(right: RaggedMaps, window: int) -> float:
    """The part of `squared_error` that is the converged maps' own, or somewhat more than it.

    It does not know that stratified timesteps err less.
    """
    return _mean_of_windows(
        (right.window_error(i) ** 2 for i in range(len(right.image_id))), window
    )


def _mean_of_windows(maps: Iterable[Any], window: int) -> float:
    """Over the windows that fit: those at the far edges only repeat the last of them."""
    total, count = 0.0, 0
    for one in maps:
        h, w = one.shape
        fitting = one[: max(1, h - window + 1), : max(1, w - window + 1)].astype(np.float64)
        total += float(fitting.sum())
        count += fitting.size
    return total / count


def followed(
    highest: Mapping[int, pa.Table], rows: Sequence[Row], top: int, share: float = SHARE
) -> Followed:
    """What adaptive mining does with these images, given their highest patches (`scored`) by draws.

    Its rounds are the numbers of draws that there are patches for. As in `flows.selection`, an
    image that is undecided goes to its round's draws, whatever it has had.
    """
    first, *further = sorted(highest)
    had = dict.fromkeys(rows, first)
    forwards = first * forwards_of(rows)
    for place, draws in enumerate([*further, None], 1):
        now = at_their_draws(highest, had)
        selection = top_patches(now, top)
        ends = ends_of_top(selection, top)
        if draws is None:
            break
        there = image_rows(now)
        codes = np.unique([label for _, label in there], return_inverse=True)[1].astype(np.int32)
        chosen = undecided(codes, distances(now, ends), share**place)
        wanted = [row for row, one in zip(there, chosen, strict=True) if one]
        for before in {had[row] for row in wanted}:
            some = [row for row in wanted if had[row] == before]
            forwards += (draws - before) * forwards_of(some)
        had |= dict.fromkeys(wanted, draws)
    sure = [chance for _, chance in chances(now, ends)]
    return Followed(had, forwards, selection, sum(sure) / max(len(sure), 1))


def at_their_draws(highest: Mapping[int, pa.Table], had: Mapping[Row, int]) -> pa.Table:
    """Each image's highest patches after as many draws as it has had."""
    parts = []
    for draws, table in highest.items():
        pairs = zip(table["image_id"].to_pylist(), table["label"].to_pylist(), strict=True)
        parts.append(table.filter(pa.array([had[pair] == draws for pair in pairs], pa.bool_())))
    return pa.concat_tables(parts)


def forwards_of(rows: Iterable[Row]) -> int:
    """What one draw of these takes: each image under the null prompt and each of its labels."""
    rows = list(rows)
    return len({image_id for image_id, _ in rows}) + len(rows)


if __name__ == "__main__":
    main()
