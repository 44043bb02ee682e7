"""The trend of an element: how its look moves across labels, as colours and as one mean patch each.

In: the mean CIELAB colour of every patch of every sequence under each label, and the joint clusters
that the sequences are in. Out: a colour for each cluster and label, and how far apart they lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ALGO = "trend-1"
"""Version of the colours and their means; part of the units' keys."""

Tile = npt.NDArray[np.uint8]
Colours = npt.NDArray[np.floating[Any]]

TREND_SCHEMA = pa.schema(
    [
        ("cluster", pa.int32()),
        ("label", pa.string()),
        ("lightness", pa.float32()),  # CIELAB under D65: L* from 0 to 100
        ("a", pa.float32()),  # a*, from green to red
        ("b", pa.float32()),  # b*, from blue to yellow
        ("srgb", pa.string()),  # the same colour as #rrggbb, clipped to what a screen can show
        ("delta_e", pa.float32()),  # CIE76 distance to the mean of the cluster's labels
    ]
)

# IEC 61966-2-1: linear sRGB to XYZ; its white, all ones, is D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_WHITE = _TO_XYZ.sum(axis=1)
_KNEE = 6 / 29  # of CIELAB: below its cube, lightness is linear in luminance
_LEVELS = np.arange(256) / 255
_LINEAR = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)


def lab_of(srgb: npt.NDArray[np.uint8]) -> Colours:
    """CIELAB [..., 3] (D65) of sRGB bytes [..., 3]."""
    xyz = _LINEAR[srgb] @ _TO_XYZ.T / _WHITE
    fx, fy, fz = np.moveaxis(
        np.where(xyz > _KNEE**3, np.cbrt(xyz), xyz / (3 * _KNEE**2) + 4 / 29), -1, 0
    )
    return np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)


def srgb_of(lab: Colours) -> npt.NDArray[np.uint8]:
    """The sRGB bytes [..., 3] of CIELAB [..., 3], clipped channel by channel."""
    lightness, a, b = np.moveaxis(np.asarray(lab, np.float64), -1, 0)
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], axis=-1)
    xyz = _WHITE * np.where(f > _KNEE, f**3, 3 * _KNEE**2 * (f - 4 / 29))
    linear = np.clip(xyz @ np.linalg.inv(_TO_XYZ).T, 0, 1)
    levels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.round(255 * levels), np.uint8)


def patch_colour(patch: Tile) -> npt.NDArray[np.float32]:
    """The mean over a patch's pixels, in CIELAB, float32 [3]."""
    return np.asarray(lab_of(patch).mean(axis=(0, 1)), np.float32)


def mean_patch(patches: Iterable[Tile]) -> Tile:
    """The mean of patches uint8 [k, k, 3] of one size, pixel by pixel; ValueError for none."""
    total: npt.NDArray[np.int64] | None = None
    count = 0
    for patch in patches:
        total = patch.astype(np.int64) if total is None else total + patch
        count += 1
    if total is None:
        raise ValueError("the mean of no patch is none")
    return np.asarray(np.round(total / count), np.uint8)


def trend_table(
    cluster: npt.NDArray[np.int32], colours: Mapping[str, npt.NDArray[np.floating[Any]]]
) -> pa.Table:
    """One row (TREND_SCHEMA) for each cluster and label, in the order of both.

    cluster [n]: that of each sequence. colours: by label the `patch_colour` of each [n, 3]. As all
    patches have one size, the mean over patches is the mean over their pixels.
    """
    rows = []
    for one in np.unique(cluster):
        members = cluster == one
        means = {label: lab[members].mean(axis=0, dtype=float) for label, lab in colours.items()}
        middle = np.mean(list(means.values()), axis=0)
        for label, lab in means.items():
            red, green, blue = srgb_of(lab)
            rows.append(
                {
                    "cluster": int(one),
                    "label": label,
                    **dict(zip(("lightness", "a", "b"), map(float, lab), strict=True)),
                    "srgb": f"#{red:02x}{green:02x}{blue:02x}",
                    "delta_e": float(np.linalg.norm(lab - middle)),
                }
            )
    return pa.Table.from_pylist(rows, schema=TREND_SCHEMA)


@dataclass(frozen=True)
class Movement:
    """The two labels whose colours lie furthest apart, in their order, and how far (CIE76)."""

    labels: tuple[str, str]
    delta_e: float


def movements(trend: pa.Table) -> dict[int, Movement]:
    """The movement of each cluster of a trend table that has two labels or more."""
    by_cluster: dict[int, dict[str, Colours]] = {}
    for row in trend.to_pylist():
        colour = np.array([row["lightness"], row["a"], row["b"]])
        by_cluster.setdefault(row["cluster"], {})[row["label"]] = colour
    return {
        cluster: max(
            (
                Movement(pair, float(np.linalg.norm(colours[pair[0]] - colours[pair[1]])))
                for pair in combinations(colours, 2)
            ),
            key=lambda movement: movement.delta_e,  # of equal ones the first
        )
        for cluster, colours in by_cluster.items()
        if len(colours) > 1
    }
