"""What half precision of the UNet does to patch scores and to the top patches of a mined root.

    python -m benchmarks.precision --root ROOT --images 60 --draws 100 --top 12

The same images, draws and finetuned model in float32, bfloat16 and float16: rank correlation of the
scores of all windows, and the share of each label's top patches that stay. Two float32 runs with
different draws stand beside them: what another seed would have changed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.draws import Mined, forwards_of, mined_there, scored, top_patches
from diffmining_core.evaluation.agreement import same_patches
from diffmining_core.patches.scoring import patch_scores
from diffmining_core.store.maps import RaggedMaps
from diffmining_core.store.roots import open_root
from diffmining_core.typicality.shard import TypicalityOptions, shard_typicality
from tasks.models import Device, loaded
from tasks.typicality import packed


def measured(mined: Mined, options: TypicalityOptions, device: Device) -> RaggedMaps:
    """The images' maps with the UNet in one precision."""
    pipeline = loaded(mined.root.url, mined.model, device)
    total = forwards_of(mined.rows) * options.draws
    with tqdm(total=total, unit=" forwards", desc=device.dtype) as bar:
        maps, _ = shard_typicality(pipeline, mined.images, options, on_forwards=bar.update)
    return packed(mined.images, maps, options)


def rank_correlation(one: RaggedMaps, other: RaggedMaps, cell: int, patch: int) -> float:
    """Spearman's, over all windows of all images."""

    def ranks(maps: RaggedMaps) -> npt.NDArray[np.int64]:
        scores = [
            patch_scores(maps.map(i), (cell * int(h), cell * int(w)), patch).ravel()
            for i, (h, w) in enumerate(maps.hw)
        ]
        return np.concatenate(scores).argsort(kind="stable").argsort(kind="stable")

    return float(np.corrcoef(ranks(one), ranks(other))[0, 1])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--top", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    mined = mined_there(open_root(arguments.root), arguments.images)
    options = replace(mined.options, draws=arguments.draws)
    cell, patch = mined.patches["cell"], mined.patches["size"]
    ways = {
        "float32": ("float32", options),
        "float16": ("float16", options),
        "bfloat16": ("bfloat16", options),
        "float32, other draws": ("float32", replace(options, draws_seed=options.seed + 1)),
    }
    print(f"{len(mined.images)} images, {arguments.draws} draws, top {arguments.top} of each label")
    print("| UNet in | seconds | rank correlation of patch scores | of the top patches |")
    print("|---|---|---|---|")
    exact: RaggedMaps | None = None
    for name, (dtype, how) in ways.items():
        started = time.perf_counter()
        maps = measured(mined, how, Device(arguments.device, dtype))
        seconds = time.perf_counter() - started
        if exact is None:
            exact = maps
            print(f"| {name} | {seconds:.0f} | | |")
            continue
        correlation = rank_correlation(exact, maps, cell, patch)
        kept = same_patches(
            *(top_patches(scored(m, mined.patches), arguments.top) for m in (exact, maps))
        )
        print(f"| {name} | {seconds:.0f} | {correlation:.4f} | {kept:.1%} |", flush=True)


if __name__ == "__main__":
    main()
