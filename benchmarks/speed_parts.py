"""What `benchmarks.speed` measures, a function for each part of the table.

Each side is warmed up before it is measured; what that took is no part of a rate.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peak import feature_flops, now, training_flops
from benchmarks.pictures import LABELS, Picture, PicturesToTrainOn, draw_pictures
from benchmarks.plain_loop import (
    BATCH,
    BRANCHES,
    INVERSION,
    RECONSTRUCTION,
    PlainMap,
    plain_decoding,
    plain_features,
    plain_inversion,
    plain_redrawing,
    plain_training,
    plain_typicality,
)
from benchmarks.speed_bench import Bench, compare, compared_row, loaded
from benchmarks.speed_table import Row, number
from diffmining_core.features.dift import NOISES, image_features
from diffmining_core.finetuning.listener import Listener
from diffmining_core.finetuning.losses import History
from diffmining_core.finetuning.options import FinetuneOptions, FinetuneRunning
from diffmining_core.finetuning.training import Kept, Work, train
from diffmining_core.images.shard_image import ShardImage
from diffmining_core.models.compiled import COMPILE_ROWS
from diffmining_core.models.denoiser import rows_at_once
from diffmining_core.models.lanes import in_lanes
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.prompts import PromptTemplate
from diffmining_core.store.checkpoints import RootCheckpoints
from diffmining_core.store.roots import open_root
from diffmining_core.translation.inversion import invert, sampling_timesteps
from diffmining_core.translation.plug_and_play import FEATURE_SHARE, Targets, redraw
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality

PROMPTS = PromptTemplate()
T_RANGE = (0.1, 0.7)
SEED = 42
PAPER_DRAWS = 100
WARM_UP_DRAWS = 3
"""Enough for a compiled UNet to become a CUDA graph."""
SAMPLING_STEPS = 50
GUIDANCE = 7.5
PATCHES = 5
"""Of an image, as in mining."""

Map = npt.NDArray[np.float32]


class OurMap(NamedTuple):
    """The mean of typicality and the sum of squared deviations, [h, w] each."""

    mean: Map
    m2: Map


def measure_typicality(bench: Bench) -> Iterator[Row]:
    """Images a second at each size, as it is and with a compiled UNet, and the bytes kept."""
    settings = bench.settings
    compiled = bench.ours.compiled
    for hw in settings.sizes:
        pictures = bench.pictures(hw, max(bench.images_of(hw), settings.plain_images))
        row, plain_maps, maps = _typicality_at(bench, hw, pictures)
        yield row
        yield _stored_row(plain_maps, maps, settings.draws, pixels_of(hw))
        shape = bench.latent_shape(hw)
        if settings.device.type == "cuda" and not compiled.wants(shape):
            compiled.plan(shape, COMPILE_ROWS)
            row, _, _ = _typicality_at(bench, hw, pictures)
            yield row if compiled.wants(shape) else replace(row, note=f"{row.note}; not compiled")
            compiled.shapes.discard(shape)  # the other parts measure as mining usually is


def pixels_of(hw: tuple[int, int]) -> str:
    """A size as it stands in the table."""
    return f"{hw[0]} × {hw[1]} px"


def _typicality_at(
    bench: Bench, hw: tuple[int, int], pictures: Sequence[Picture]
) -> tuple[Row, list[PlainMap], list[OurMap]]:
    """What both took, and what both last came to."""
    settings = bench.settings
    first = pictures[: settings.plain_images]
    ours = pictures[: bench.images_of(hw)]
    plain_maps: list[PlainMap] = []
    maps: list[OurMap] = []

    def plain_rate() -> float:
        started = now(settings.device)
        plain_maps[:] = _plain_maps(bench, first, settings.draws)
        return len(first) / (now(settings.device) - started)

    def our_rate() -> float:
        started = now(settings.device)
        maps[:] = our_typicality(bench.ours, ours, settings.draws)
        return len(ours) / (now(settings.device) - started)

    _plain_maps(bench, first[:1], min(BATCH, settings.draws))
    started = now(settings.device)
    our_typicality(bench.ours, ours, min(WARM_UP_DRAWS, settings.draws))
    warm_up = now(settings.device) - started
    compared = compare(bench, plain_rate, our_rate)
    error, scale = largest_difference(plain_maps, maps)
    flops = bench.forward_flops(hw)
    compiled = ", compiled UNet" if bench.ours.compiled.wants(bench.latent_shape(hw)) else ""
    row = compared_row(
        bench,
        "typicality",
        f"typicality, {pixels_of(hw)}, {settings.draws} draws{compiled}",
        compared,
        (2 * settings.draws, 2 * settings.draws),
        (flops, flops),
        f"maps differ by {error:.1e} at most, of {scale:.1e}; warm-up {warm_up:.1f} s",
    )
    return row, plain_maps, maps


def _plain_maps(bench: Bench, pictures: Sequence[Picture], draws: int) -> list[PlainMap]:
    return plain_typicality(bench.plain, pictures, PROMPTS, draws, T_RANGE, SEED, bench.folder)


def our_typicality(pipeline: Pipeline, pictures: Sequence[Picture], draws: int) -> list[OurMap]:
    """The maps of the pictures as mining measures them."""
    height, width = pictures[0].pixels().shape[:2]
    images = [
        ShardImage(picture.image_id, str(picture.path), picture.label, width, height)
        for picture in pictures
    ]
    options = TypicalityOptions(PROMPTS, min(height, width), draws, T_RANGE, SEED)
    maps, _ = shard_typicality(pipeline, images, options)
    return [OurMap(maps[place].mean, maps[place].m2) for place in range(len(images))]


def largest_difference(
    plain_maps: Sequence[PlainMap], maps: Sequence[OurMap]
) -> tuple[float, float]:
    """Of the means that both have, and the largest value among the plain ones."""
    pairs = [(plain.mean, ours.mean) for plain, ours in zip(plain_maps, maps, strict=False)]
    error = max(float(np.abs(ours - plain).max()) for plain, ours in pairs)
    return error, max(float(np.abs(plain).max()) for plain, _ in pairs)


def _stored_row(
    plain_maps: Sequence[PlainMap], maps: Sequence[OurMap], draws: int, size: str
) -> Row:
    """Bytes of an image: losses of 100 draws against a mean and its squared deviations."""
    plain = plain_maps[0].stored * PAPER_DRAWS / draws
    width = plain_maps[0].stored // (draws * 2 * 4 * plain_maps[0].mean.size)
    try:
        here, how = _compressed_bytes(maps), "compressed"
    except ModuleNotFoundError as error:
        here, how = float(2 * maps[0].mean.nbytes), f"uncompressed, else it needs {package(error)}"
    return Row(
        "typicality",
        f"bytes kept of an image, {size}",
        "bytes",
        plain,
        here,
        (plain / here,),
        note=f"{PAPER_DRAWS} × 2 × 4 maps of {width} bytes a number against mean and m2, {how}",
    )


def _compressed_bytes(maps: Sequence[OurMap]) -> float:
    """Of one image in the Zarr group that its shard would have."""
    from diffmining_core.store.ledger import Attempt
    from diffmining_core.store.maps import RaggedMaps, write_maps
    from diffmining_core.store.units import Unit

    means, m2s = zip(*maps, strict=True)
    ids = [f"{place:032x}" for place in range(len(maps))]
    attempt = Attempt(open_root("memory://speed"), Unit("typicality", "", (), {}))
    write_maps(attempt, RaggedMaps.pack(means, m2s, [1.0] * len(maps), ids, ids, PAPER_DRAWS))
    # Only the chunks: what else a group has is little for a shard's thousand images.
    chunks = [file for name, file in attempt.files.items() if "/c/" in name]
    return sum(int(file["bytes"]) for file in chunks) / len(maps)


def measure_features(bench: Bench) -> Iterator[Row]:
    """DIFT of images with five patches each."""
    settings = bench.settings
    hw = bench.training_size
    pictures = bench.pictures(hw, settings.plain_images)
    size = min(64, hw[0] // 2)
    places = np.linspace(0, hw[0] - size, PATCHES).astype(int).tolist()
    patches = [(place, place) for place in places]
    embeds = {
        label: bench.ours.embed_prompts([PROMPTS.of(label)])[0]
        for label in sorted({picture.label for picture in pictures})
    }
    found: dict[str, Map] = {}

    def plain_rate(pictures: Sequence[Picture]) -> float:
        started = now(settings.device)
        for one in pictures:
            found["plain"] = plain_features(bench.plain, one, PROMPTS, patches, size, SEED)
        return len(pictures) / (now(settings.device) - started)

    def read(picture: Picture) -> Callable[[], Map]:
        return partial(
            image_features,
            bench.ours,
            picture.pixels(),
            embeds[picture.label],
            patches,
            size,
            SEED,
            picture.image_id,
        )

    def our_rate() -> float:
        started = now(settings.device)
        *_, found["ours"] = in_lanes(settings.device, pictures, read, lambda embed: embed)
        return len(pictures) / (now(settings.device) - started)

    plain_rate(pictures[:1])
    our_rate()
    compared = compare(bench, partial(plain_rate, pictures), our_rate)
    error = float(np.abs(found["plain"] - found["ours"]).max())
    latent_hw = bench.latent_shape(hw)[1:]
    yield compared_row(
        bench,
        "features",
        f"DIFT, {pixels_of(hw)}, {PATCHES} patches an image",
        compared,
        (NOISES * PATCHES, NOISES),
        (bench.forward_flops(hw), feature_flops(bench.ours.unet.config, latent_hw)),
        f"features of length 1 differ by {error:.1e} at most; here a forward ends at the up block",
    )


def measure_translation(bench: Bench) -> Iterator[Row]:
    """Plug-and-Play: source images a second, each under all targets."""
    settings, hw = bench.settings, bench.training_size
    rows = rows_at_once(bench.ours, bench.latent_shape(hw))
    sources = settings.sources or max(1, rows // 2)
    at_once = min(settings.targets, max(1, (rows - 1) // 2))
    redrawn = min(sources, max(1, rows // (1 + 2 * at_once)))
    pictures = bench.pictures(hw, sources)
    labels = [LABELS[1 + place % (len(LABELS) - 1)] for place in range(at_once)]
    stretched = SAMPLING_STEPS / settings.steps
    upwards = sampling_timesteps(SAMPLING_STEPS)[0]

    def plain_rate() -> float:
        inverting, redrawing, decoding = _plain_translation(bench, pictures[0], labels[0])
        of_source = (INVERSION + RECONSTRUCTION) / settings.steps * inverting
        of_target = stretched * redrawing + decoding
        return 1 / (of_source + settings.targets * of_target)

    def our_rate() -> float:
        inverting, redrawing, decoding = _our_translation(bench, pictures, redrawn, labels)
        of_source = upwards / settings.steps * inverting / sources
        of_target = (stretched * redrawing + decoding) / (redrawn * at_once)
        return 1 / (of_source + settings.targets * of_target)

    plain_rate()
    our_rate()
    compared = compare(bench, plain_rate, our_rate)
    plain_forwards = INVERSION + RECONSTRUCTION + BRANCHES * SAMPLING_STEPS * settings.targets
    carrying = FEATURE_SHARE * SAMPLING_STEPS * settings.targets / at_once
    forwards = upwards + carrying + 2 * SAMPLING_STEPS * settings.targets
    flops = bench.forward_flops(hw)
    yield compared_row(
        bench,
        "translation",
        f"Plug-and-Play, {pixels_of(hw)}, labels for each: {settings.targets}",
        compared,
        (plain_forwards, forwards),
        (flops, flops),
        f"{settings.steps} timesteps measured and scaled to the {plain_forwards:,} forwards of the "
        f"plain loop and the {forwards:,.0f} here; {sources} inverted, {redrawn} redrawn at once",
    )


def _plain_translation(bench: Bench, picture: Picture, label: str) -> tuple[float, float, float]:
    """Seconds of the inversion, of the steps under one label, and of the decoder."""
    timesteps = sampling_timesteps(bench.settings.steps)
    clock = [now(bench.settings.device)]
    inverted = plain_inversion(bench.plain, picture, PROMPTS, timesteps[::-1])
    clock.append(now(bench.settings.device))
    latents = plain_redrawing(bench.plain, inverted, label, PROMPTS, GUIDANCE)
    clock.append(now(bench.settings.device))
    plain_decoding(bench.plain, latents)
    clock.append(now(bench.settings.device))
    return clock[1] - clock[0], clock[2] - clock[1], clock[3] - clock[2]


def _our_translation(
    bench: Bench, pictures: Sequence[Picture], redrawn: int, labels: Sequence[str]
) -> tuple[float, float, float]:
    """The same of all pictures, of so many of them under all the labels, and of the decoder."""
    pipeline, steps = bench.ours, bench.settings.steps
    timesteps = sampling_timesteps(steps)
    clock = [now(bench.settings.device)]
    latents, _ = pipeline.encode_pixels(np.stack([picture.pixels() for picture in pictures]))
    embeds = pipeline.embed_prompts([PROMPTS.of(picture.label) for picture in pictures])
    inverted = invert(pipeline, latents, embeds, timesteps[::-1], timesteps)
    clock.append(now(bench.settings.device))
    label_embeds = pipeline.embed_prompts([PROMPTS.of(label) for label in labels])
    targets = Targets(
        torch.arange(redrawn).repeat_interleave(len(labels)), label_embeds.repeat(redrawn, 1, 1)
    )
    some = {t: of_all[:redrawn] for t, of_all in inverted.items()}
    null_embeds = pipeline.embed_prompts([PROMPTS.null])
    latents = redraw(pipeline, some, some[timesteps[0]], targets, null_embeds, steps, GUIDANCE)
    clock.append(now(bench.settings.device))
    pipeline.decode(latents)
    clock.append(now(bench.settings.device))
    return clock[1] - clock[0], clock[2] - clock[1], clock[3] - clock[2]


class _Clock(Listener):
    """When each step of a training ended."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ends: list[float] = []

    def stepped(self, step: int, history: History, images_per_second: float) -> None:
        """Note the time."""
        self.ends.append(now(self.device))


def measure_finetuning(bench: Bench) -> Iterator[Row]:
    """Whole steps on all weights; the first, which fills the cache of latents, does not count."""
    settings = bench.settings
    hw = bench.training_size
    pictures = bench.pictures(hw, settings.train_batch)
    trained = settings.train_steps * settings.train_batch
    plain = loaded(settings.model, settings.device, torch.float32)
    ours = loaded(settings.model, settings.device, torch.float32)

    def plain_rate() -> float:
        steps = plain_training(plain, pictures, PROMPTS, 1e-5)
        next(steps)
        started = now(settings.device)
        for _ in range(settings.train_steps):
            next(steps)
        seconds = now(settings.device) - started
        steps.close()
        return trained / seconds

    def our_rate() -> float:
        clock = _Clock(settings.device)
        options = FinetuneOptions(
            steps=1 + settings.train_steps,
            batch_size=settings.train_batch,
            learning_rate=1e-5,
            size=hw[0],
            crop="none",
        )
        nowhere = RootCheckpoints(open_root("memory://speed"), "finetuning")
        with tempfile.TemporaryDirectory() as scratch:
            train(
                Work(
                    ours,
                    PicturesToTrainOn(pictures),
                    PROMPTS,
                    LABELS,
                    options,
                    FinetuneRunning(),
                    Kept(nowhere, nowhere, nowhere),
                    Path(scratch),
                ),
                [clock],
            )
        return trained / (clock.ends[-1] - clock.ends[0])

    compared = compare(bench, plain_rate, our_rate)
    flops = training_flops(ours.unet.config, bench.latent_shape(hw)[1:])
    yield compared_row(
        bench,
        "finetuning",
        f"finetuning, {pixels_of(hw)}, {settings.train_batch} images a step",
        compared,
        (1, 1),
        (flops, flops),
        "all weights, AdamW; latents are kept after the first epoch here, which does not count",
    )


def measure_patches(bench: Bench) -> Iterator[Row]:
    """Maps a second, all three kinds of patches, on one core."""
    from benchmarks.patch_scoring import CASES, shard
    from diffmining_core.patches.scoring import shard_patches

    for height, width, size in CASES:
        maps = shard(bench.settings.maps, height, width)
        shard_patches(shard(1, height, width), 8, size, PATCHES, seed=0)
        started = time.perf_counter()
        shard_patches(maps, 8, size, PATCHES, seed=0)
        yield Row(
            "patches",
            f"patch scoring, {pixels_of((8 * height, 8 * width))}, {size}-px patches",
            "maps/s",
            here=bench.settings.maps / (time.perf_counter() - started),
            note="one process",
        )


def measure_clusters(bench: Bench) -> Iterator[Row]:
    """k-means of some labels, and what that makes for the 365 of Places."""
    from diffmining_core.clusters.kmeans import adapted_k, cluster_label

    points, seconds = bench.settings.kmeans_points, []
    cluster_label(np.eye(2, 1280), np.ones(2), 1)  # brings scikit-learn along
    for label in range(bench.settings.kmeans_labels):
        rng = np.random.default_rng(label)
        # Most of the variance in few directions, as in features of images, and no clear groups.
        features = rng.normal(size=(points, 1280)) / np.arange(1, 1281)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        started = time.perf_counter()
        cluster_label(features, rng.normal(size=points), adapted_k(points, 32))
        seconds.append(time.perf_counter() - started)
    median = statistics.median(seconds)
    yield Row(
        "clusters",
        f"k-means of a label: {points:,} patches of 1280 numbers, k 32, 10 starts",
        "s",
        here=median,
        note=f"median of {len(seconds)}; 365 labels: {365 * median / 60:.1f} minutes on one core "
        "(derived)",
    )


def measure_shards(bench: Bench) -> Iterator[Row]:
    """Seconds a shard when one process does one, two, four … of them, its start counted in."""
    settings = bench.settings
    pictures = bench.pictures(bench.training_size, settings.shard_images)
    started = now(settings.device)
    pipeline = loaded(settings.model, settings.device, settings.precision)
    elapsed = []
    for _ in range(settings.shards):
        our_typicality(pipeline, pictures, settings.draws)
        elapsed.append(now(settings.device) - started)
    for shards in (2**power for power in range(settings.shards.bit_length())):
        yield Row(
            "shards",
            f"{shards} shard{'s' if shards > 1 else ''} of {settings.shard_images} images in one "
            "process, a shard",
            "s",
            here=elapsed[shards - 1] / shards,
            note=f"loading and warm-up counted in; {settings.draws} draws",
        )


_start: Barrier


def _begin_worker(barrier: Barrier) -> None:
    global _start
    _start = barrier
    torch.set_num_threads(1)


def _work(folder: str, images: int, draws: int) -> tuple[float, float]:
    """When a worker began with its images and when it was done."""
    pipeline = loaded("tiny", torch.device("cpu"), torch.float32)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        pictures = draw_pictures(Path(own), (128, 128), images)
        our_typicality(pipeline, pictures[:1], 1)
        _start.wait()
        started = time.time()
        our_typicality(pipeline, pictures, draws)
        return started, time.time()


def measure_workers(bench: Bench) -> Iterator[Row]:
    """Images a second of CPU workers with one thread each, every one with images of its own."""
    settings = bench.settings
    alone: float | None = None
    for workers in range(1, settings.workers + 1):
        context = get_context("spawn")
        with ProcessPoolExecutor(
            workers, context, _begin_worker, (context.Barrier(workers),)
        ) as pool:
            jobs = [
                pool.submit(_work, str(bench.folder), settings.worker_images, settings.draws)
                for _ in range(workers)
            ]
            starts, ends = zip(*(job.result() for job in jobs), strict=True)
        rate = workers * settings.worker_images / (max(ends) - min(starts))
        alone = alone or rate
        yield Row(
            "workers",
            f"{workers} CPU worker{'s' if workers > 1 else ''} of one thread, tiny pipeline",
            "images/s",
            here=rate,
            note=f"{rate / alone:.2f} times one worker; {settings.draws} draws",
        )
    if not settings.workers:
        yield Row("workers", "CPU workers", missing="left out of a quick run")


class Part(NamedTuple):
    """Some rows of the table: what they are of, and what measures them."""

    title: str
    rows: Callable[[Bench], Iterator[Row]]


PARTS = {
    "typicality": Part("typicality", measure_typicality),
    "features": Part("DIFT", measure_features),
    "translation": Part("Plug-and-Play", measure_translation),
    "finetuning": Part("finetuning", measure_finetuning),
    "patches": Part("patch scoring", measure_patches),
    "clusters": Part("k-means", measure_clusters),
    "shards": Part("one process, several shards", measure_shards),
    "workers": Part("CPU workers", measure_workers),
}


def measure(part: str, bench: Bench) -> list[Row]:
    """The rows of a part; one that says why, from where something that it needs is missing."""
    title, measured = PARTS[part]
    rows = []
    try:
        for row in measured(bench):
            rows.append(row)
            print(f"{row.what}: {row.missing or f'{number(row.here)} {row.unit}'}", flush=True)
    except ModuleNotFoundError as error:
        rows.append(Row(part, title, missing=f"needs {package(error)}"))
    except torch.OutOfMemoryError:
        rows.append(Row(part, title, missing="needs more memory than the device has"))
    gc.collect()
    torch.cuda.empty_cache()  # how many rows go at once depends on what is free
    return rows


def package(error: ModuleNotFoundError) -> str:
    """The package that is to be installed for a module."""
    module = (error.name or str(error)).partition(".")[0]
    return {"sklearn": "scikit-learn"}.get(module, module)
