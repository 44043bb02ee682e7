"""Seconds to score and pick the patches of one street-view map, all three kinds, on one thread.

Run with OMP_NUM_THREADS=1 for the figure of one core: `python -m benchmarks.patch_scoring`. On a
busy machine read the processor seconds; the others include the time spent waiting for a core.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from diffmining_core.patches.scoring import image_patches


def main() -> None:
    """Print the median and the slowest of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--height", type=int, default=64, help="map height in cells")
    parser.add_argument("--width", type=int, default=94, help="map width in cells")
    parser.add_argument("--cell", type=int, default=8, help="pixels per cell")
    parser.add_argument("--size", type=int, default=64, help="patch side in pixels")
    parser.add_argument("--per-image", type=int, default=5, help="patches per image and kind")
    parser.add_argument("--repeats", type=int, default=50, help="maps timed")
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    seconds, cpu_seconds = [], []
    for i in range(options.repeats + 1):
        typicality = rng.normal(size=(options.height, options.width)).astype(np.float32)
        start, cpu_start = time.perf_counter(), time.process_time()
        image_patches(
            typicality, f"{i:032x}", "label", options.cell, options.size, options.per_image, seed=0
        )
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    first, *rest = seconds  # the first also builds the weights, which a shard does once per shape
    print(
        f"{options.height}x{options.width} -> "
        f"{options.height * options.cell}x{options.width * options.cell}, "
        f"{options.size}-px patches, {options.per_image} of each of 3 kinds: "
        f"median {statistics.median(rest):.4f} s "
        f"({statistics.median(cpu_seconds):.4f} s of processor), "
        f"slowest {max(rest):.4f} s, first {first:.4f} s"
    )


if __name__ == "__main__":
    main()
