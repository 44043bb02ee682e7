"""Maps scored and picked per second, all three kinds of patches, on one core.

Two cases: 256-px images with 50-px patches, 512-px images with 64-px patches; or the one given.
Run with OMP_NUM_THREADS=1: `python -m benchmarks.patch_scoring`. On a busy machine read the maps
per processor second; the others include the time spent waiting for a core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from diffmining_core.patches.scoring import shard_patches
from diffmining_core.store.maps import RaggedMaps

CASES = ((32, 32, 50), (64, 64, 64))
"""Height and width of the maps in cells, side of a patch in pixels."""


def shard(count: int, height: int, width: int) -> RaggedMaps:
    """Maps of noise of one shape."""
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(height, width)).astype(np.float32) for _ in range(count)]
    ids = [f"{i:032x}" for i in range(count)]
    return RaggedMaps.pack(maps, maps, [1.0] * count, ids, ["label"] * count, 2)


def main() -> None:
    """Print the rate of the best of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, help="map height in cells")
    parser.add_argument("--width", type=int, help="map width in cells")
    parser.add_argument("--size", type=int, default=64, help="patch side in pixels")
    parser.add_argument("--cell", type=int, default=8, help="pixels per cell")
    parser.add_argument("--per-image", type=int, default=5, help="patches per image and kind")
    parser.add_argument("--maps", type=int, default=1000, help="maps in the shard")
    parser.add_argument("--repeats", type=int, default=3, help="times that the shard is scored")
    options = parser.parse_args()

    given = options.height and options.width
    cases = [(options.height, options.width, options.size)] if given else CASES
    for height, width, size in cases:
        maps = shard(options.maps, height, width)
        seconds, cpu_seconds = [], []
        for _ in range(options.repeats):
            start, cpu_start = time.perf_counter(), time.process_time()
            shard_patches(maps, options.cell, size, options.per_image, seed=0)
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
        print(
            f"{height}x{width} -> {height * options.cell}x{width * options.cell}, {size}-px "
            f"patches, {options.per_image} of each of 3 kinds: "
            f"{options.maps / min(cpu_seconds):.0f} maps per processor second, "
            f"{options.maps / min(seconds):.0f} maps/s"
        )


if __name__ == "__main__":
    main()
