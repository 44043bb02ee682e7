"""Ragged Zarr maps: the typicality maps of one unit, of many shapes, in one Zarr v3 group.

`values` and `m2` are float32 [Σ h·w], each one shard object with inner chunks of 131,072 values;
`offsets` int64 [n+1] and `hw` int32 [n, 2] say where each map lies and its shape, `null_loss`
float32 [n] what its typicality is to be compared with; ids, labels and the numbers of draws are
attributes. 11 objects a unit, whatever n. One writer, never appended to.

Maps that are measured in rounds (`typicality.rounds`) have `window_m2` too, float32 like `m2`. The
unit of a later round holds the maps that were measured further, and names the one `before` it,
which has the others: `read_maps` gives all of them.

Float32 keeps what was measured to the bit, so that patches chosen from a stored map are those of
the map; typicality below 6e-5 would be subnormal in float16.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from zarr.codecs import BloscCodec
from zarr.core.array_spec import ArrayConfigParams
from zarr.core.buffer import Buffer
from zarr.core.buffer.cpu import Buffer as CpuBuffer
from zarr.storage import FsspecStore, MemoryStore

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import (
    Attempt,
    Manifest,
    finished,
    missing_file,
    read_bytes,
    read_files,
)
from diffmining_core.store.roots import Root, explained

if TYPE_CHECKING:
    import dask.array as da

NAME = "maps.zarr"

INNER_CHUNK = 131_072
"""Values in one inner chunk, the least that is read: half a MiB before compression."""

WRITE_ALL: ArrayConfigParams = {"write_empty_chunks": True}
"""All-zero chunks too: every unit then has the same objects, and a missing one is a fault."""

ARRAYS = ("values", "m2", "null_loss", "offsets", "hw")
WINDOW_M2 = "window_m2"


@dataclass
class RaggedMaps:
    """n typicality maps of any shapes, end to end.

    values: float32 [Σ h·w], each map the mean over the draws, row-major. m2: float32 like values,
    the sum over the draws of squared deviations from that mean, of draws that come `together` those
    of their mean. null_loss: float32 [n], mean over draws and positions of the squared error of the
    predicted noise under the null prompt. offsets: int64 [n+1], map i is
    values[offsets[i]:offsets[i+1]]. hw: int32 [n, 2]. image_id, label: one per map; an image of
    several labels has a map for each. n_draws: int32 [n]. window_m2: None or float32 like m2, of
    the mean over the `window` × `window` positions that begin at each.
    """

    values: npt.NDArray[np.float32]
    m2: npt.NDArray[np.float32]
    null_loss: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    hw: npt.NDArray[np.int32]
    image_id: list[str]
    label: list[str]
    n_draws: npt.NDArray[np.int32]
    together: int = 1
    window: int = 0
    window_m2: npt.NDArray[np.float32] | None = None

    @classmethod
    def pack(
        cls,
        means: Sequence[npt.NDArray[np.float32]],
        m2s: Sequence[npt.NDArray[np.float32]],
        null_loss: Sequence[float] | npt.NDArray[np.float32],
        image_id: Sequence[str],
        label: Sequence[str],
        n_draws: int | Sequence[int],
        together: int = 1,
        window: int = 0,
        window_m2s: Sequence[npt.NDArray[np.float32]] | None = None,
    ) -> RaggedMaps:
        """Lay maps [h, w] and their m2 [h, w] end to end; ValueError if their shapes differ."""
        for i, (mean, *others) in enumerate(
            zip(means, m2s, *([window_m2s] if window_m2s is not None else []), strict=True)
        ):
            for other in others:
                if mean.ndim != 2 or mean.shape != other.shape:
                    raise ValueError(
                        f"map {i}: the mean {mean.shape} and the m2 {other.shape} should have one "
                        "shape [h, w]"
                    )
        hw = np.array([mean.shape for mean in means], np.int32).reshape(-1, 2)
        return cls(
            values=_joined(means),
            m2=_joined(m2s),
            null_loss=np.asarray(null_loss, np.float32),
            offsets=np.concatenate([[0], np.cumsum(hw.prod(axis=1, dtype=np.int64))]),
            hw=hw,
            image_id=list(image_id),
            label=list(label),
            n_draws=np.broadcast_to(np.asarray(n_draws, np.int32), len(hw)).copy(),
            together=together,
            window=window,
            window_m2=None if window_m2s is None else _joined(window_m2s),
        )

    def map(self, i: int) -> npt.NDArray[np.float32]:
        """Map i, float32 [h, w], a view."""
        return self._of(self.values, i)

    def standard_error(self, i: int) -> npt.NDArray[np.float32]:
        """Standard error of map i's mean over the draws, float32 [h, w].

        √(m2 / (n (g - 1))) of n draws in g groups; ValueError for a single group, which has none.
        """
        return self._error(self.m2, i)

    def window_error(self, i: int) -> npt.NDArray[np.float32]:
        """Standard error of map i's mean over the window that begins at each position, [h, w].

        ValueError for maps that were not measured for it.
        """
        if self.window_m2 is None:
            raise ValueError("maps have errors of windows where they are measured in rounds only")
        return self._error(self.window_m2, i)

    def _error(self, m2: npt.NDArray[np.float32], i: int) -> npt.NDArray[np.float32]:
        n = int(self.n_draws[i])
        groups = -(-n // self.together)
        if groups < 2:
            raise ValueError(
                f"a standard error needs 2 draws or more that do not depend on one another, there "
                f"is {groups}"
            )
        error: npt.NDArray[np.float32] = np.sqrt(self._of(m2, i) / np.float32(n * (groups - 1)))
        return error

    def only(self, rows: Sequence[int]) -> RaggedMaps:
        """Those in these places."""
        return RaggedMaps.pack(
            [self.map(i) for i in rows],
            [self._of(self.m2, i) for i in rows],
            self.null_loss[list(rows)],
            [self.image_id[i] for i in rows],
            [self.label[i] for i in rows],
            self.n_draws[list(rows)].tolist(),
            self.together,
            self.window,
            None if self.window_m2 is None else [self._of(self.window_m2, i) for i in rows],
        )

    def followed_by(self, other: RaggedMaps) -> RaggedMaps:
        """These and the others, end to end."""
        windows = None
        if self.window_m2 is not None and other.window_m2 is not None:
            windows = np.concatenate([self.window_m2, other.window_m2])
        return RaggedMaps(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.m2, other.m2]),
            np.concatenate([self.null_loss, other.null_loss]),
            np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]]),
            np.concatenate([self.hw, other.hw]),
            self.image_id + other.image_id,
            self.label + other.label,
            np.concatenate([self.n_draws, other.n_draws]),
            self.together,
            self.window,
            windows,
        )

    def _of(self, flat: npt.NDArray[np.float32], i: int) -> npt.NDArray[np.float32]:
        start, stop = self.offsets[i], self.offsets[i + 1]
        return flat[start:stop].reshape(self.hw[i, 0], self.hw[i, 1])


def write_maps(
    attempt: Attempt, maps: RaggedMaps, name: str = NAME, before: str | None = None
) -> None:
    """Store the maps as the Zarr group `name`; InputError if their shapes do not fit together.

    before: key of the unit of the same stage that has the maps which are not among these.
    """
    _check(maps, attempt.unit)
    n = max(1, len(maps.hw))  # no chunk is empty
    objects: dict[str, Buffer] = {}  # filled in memory, so that each object gets its checksum
    draws = maps.n_draws.tolist()
    group = zarr.create_group(
        MemoryStore(objects),
        attributes={
            "image_id": maps.image_id,
            "label": maps.label,
            "n_draws": draws[0] if len(set(draws)) == 1 else draws,
            "together": maps.together,
            "window": maps.window,
            **({"before": before} if before else {}),
        },
    )
    _write_flat(group, "values", maps.values)
    _write_flat(group, "m2", maps.m2)
    if maps.window_m2 is not None:
        _write_flat(group, WINDOW_M2, maps.window_m2)
    group.create_array("null_loss", data=maps.null_loss, chunks=(n,), config=WRITE_ALL)
    group.create_array("offsets", data=maps.offsets)
    group.create_array("hw", data=maps.hw, chunks=(n, 2))
    for key, data in sorted(objects.items()):
        attempt.write_bytes(f"{name}/{key}", data.to_bytes())


def read_maps(root: Root, manifest: Manifest, name: str = NAME) -> RaggedMaps:
    """All maps of a unit and of those before it, every object checked against its manifest.

    InputError naming the unit if there are no maps or their shapes do not fit together.
    """
    files = _objects(manifest, name)
    objects: dict[str, Buffer] = {
        file.removeprefix(f"{name}/"): CpuBuffer.from_bytes(data)
        for file, data in zip(files, read_files(root, manifest, files), strict=True)
    }
    group = zarr.open_group(MemoryStore(objects), mode="r")
    attributes = group.attrs.asdict()
    image_id = cast(list[str], attributes["image_id"])
    draws = np.asarray(attributes["n_draws"], np.int32)
    maps = RaggedMaps(
        **{array: np.asarray(_array(group, array)[...]) for array in ARRAYS},
        image_id=image_id,
        label=cast(list[str], attributes["label"]),
        n_draws=np.broadcast_to(draws, len(image_id)).copy(),
        together=cast(int, attributes.get("together", 1)),
        window=cast(int, attributes.get("window", 0)),
        window_m2=np.asarray(_array(group, WINDOW_M2)[...]) if WINDOW_M2 in group else None,
    )
    _check(maps, manifest.unit)
    if "before" not in attributes:
        return maps
    before = read_maps(root, finished(root, manifest.stage, cast(str, attributes["before"])), name)
    anew = set(zip(maps.image_id, maps.label, strict=True))
    pairs = zip(before.image_id, before.label, strict=True)
    return before.only([i for i, pair in enumerate(pairs) if pair not in anew]).followed_by(maps)


def mapped_pairs(root: Root, manifest: Manifest, name: str = NAME) -> set[tuple[str, str]]:
    """(image_id, label) of the maps that `read_maps` gives; of these no value is read."""
    _objects(manifest, name)
    attributes = json.loads(read_bytes(root, manifest, f"{name}/zarr.json"))["attributes"]
    pairs = set(zip(attributes["image_id"], attributes["label"], strict=True))
    if "before" in attributes:
        before = finished(root, manifest.stage, attributes["before"])
        pairs |= mapped_pairs(root, before, name)
    return pairs


def open_maps_dask(root: Root, manifest: Manifest) -> dict[str, da.Array]:
    """The unit's arrays (ARRAYS) as lazy arrays whose chunks are the shards.

    A slice reads only the inner chunks it touches. CorruptFileError if an object is missing: Zarr
    would read zeros there.
    """
    import dask.array as da  # takes a second, for which those that write maps need not wait

    folder = f"{manifest.attempt}/{NAME}"
    with explained(root.url):
        stored = root.fs.find(root.path_of(folder))
        for file in _objects(manifest, NAME):
            if root.path_of(f"{manifest.attempt}/{file}") not in stored:
                raise missing_file(
                    root, (manifest.stage, manifest.key), f"{manifest.attempt}/{file}"
                )
        # Zarr's own S3 client would stay open when nobody uses the arrays any more.
        fs = AsyncFileSystemWrapper(root.fs, asynchronous=True)
        store = FsspecStore(fs, read_only=True, path=root.path_of(folder))
        group = zarr.open_group(store, mode="r")
        arrays = {name: _array(group, name) for name in ARRAYS}
    return {
        name: da.from_array(array, chunks=array.shape, name=f"{name}-{manifest.attempt}")
        for name, array in arrays.items()
    }


def _joined(maps: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    return np.concatenate([np.empty(0, np.float32), *(m.ravel() for m in maps)], dtype=np.float32)


def _write_flat(group: zarr.Group, name: str, flat: npt.NDArray[np.float32]) -> None:
    inner_chunks = max(1, -(-len(flat) // INNER_CHUNK))
    group.create_array(
        name,
        data=flat,
        chunks=(INNER_CHUNK,),
        shards=(inner_chunks * INNER_CHUNK,),
        compressors=BloscCodec(cname="zstd", clevel=5, shuffle="shuffle"),
        config=WRITE_ALL,
    )


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    array = group[name]
    assert isinstance(array, zarr.Array)
    return array


def _objects(manifest: Manifest, name: str) -> list[str]:
    files = [file for file in manifest.files if file.startswith(f"{name}/")]
    if not files:
        raise InputError(
            f"unit {manifest.unit} has no maps ({name}); it has {sorted(manifest.files)}: name a "
            "unit of the stage typicality"
        )
    return files


def _check(maps: RaggedMaps, unit: str) -> None:
    """InputError naming the unit, and the map where it can, if shapes do not fit together."""
    n = len(maps.image_id)
    expected: dict[str, tuple[npt.NDArray[Any], type, tuple[int, ...]]] = {
        "values": (maps.values, np.float32, (int(maps.offsets[-1]) if len(maps.offsets) else 0,)),
        "m2": (maps.m2, np.float32, maps.values.shape),
        "null_loss": (maps.null_loss, np.float32, (n,)),
        "offsets": (maps.offsets, np.int64, (n + 1,)),
        "hw": (maps.hw, np.int32, (n, 2)),
        "n_draws": (maps.n_draws, np.int32, (n,)),
    }
    if maps.window_m2 is not None:
        expected[WINDOW_M2] = (maps.window_m2, np.float32, maps.values.shape)
    for name, (array, dtype, shape) in expected.items():
        if array.dtype != dtype or array.shape != shape:
            raise InputError(
                f"unit {unit}: {name} of {n} maps should be {np.dtype(dtype)} {list(shape)}, is "
                f"{array.dtype} {list(array.shape)}; make the maps again"
            )
    if len(maps.label) != n:
        raise InputError(f"unit {unit}: {n} maps have {len(maps.label)} labels; make them again")
    lengths, areas = np.diff(maps.offsets), maps.hw.prod(axis=1, dtype=np.int64)
    wrong = np.flatnonzero((lengths != areas) | (maps.hw <= 0).any(axis=1))
    if len(wrong):
        i = int(wrong[0])
        raise InputError(
            f"unit {unit}: map {i} (image {maps.image_id[i]}) has {lengths[i]} values, its shape "
            f"{maps.hw[i].tolist()} needs {areas[i]}; make the maps again"
        )
