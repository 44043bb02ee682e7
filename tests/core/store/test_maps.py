from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from numpy.testing import assert_array_equal

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import (
    Attempt,
    CorruptFileError,
    Manifest,
    complete,
    read_bytes,
    read_json,
)
from diffmining_core.store.maps import ARRAYS, RaggedMaps, open_maps_dask, read_maps, write_maps
from diffmining_core.store.roots import Root, open_root
from diffmining_core.store.units import Unit

UNIT = Unit("typicality", "1", ("shard", "model"), {})

SHAPES = [(64, 64), (1, 1), (64, 94), (8, 128), (300, 500)]

OBJECTS = {
    "zarr.json",
    "values/zarr.json",
    "values/c/0",
    "m2/zarr.json",
    "m2/c/0",
    "null_loss/zarr.json",
    "null_loss/c/0",
    "offsets/zarr.json",
    "offsets/c/0",
    "hw/zarr.json",
    "hw/c/0/0",
}


def ragged(shapes: list[tuple[int, int]] = SHAPES) -> RaggedMaps:
    rng = np.random.default_rng(0)
    means = [rng.normal(0, 1e-3, shape).astype(np.float32) for shape in shapes]
    m2s = [rng.random(shape, np.float32) for shape in shapes]
    n = range(len(shapes))
    null_loss = rng.random(len(shapes), np.float32)
    ids, labels = [f"{i:032x}" for i in n], [f"länd {i % 2}" for i in n]
    return RaggedMaps.pack(means, m2s, null_loss, ids, labels, 16)


@pytest.fixture
def memory() -> Root:
    return open_root(f"memory://{uuid4().hex}")


def store(root: Root, maps: RaggedMaps) -> Manifest:
    return complete(root, UNIT, lambda attempt: write_maps(attempt, maps))


def assert_same(a: RaggedMaps, b: RaggedMaps) -> None:
    for name in ARRAYS:
        one, other = getattr(a, name), getattr(b, name)
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert one.tobytes() == other.tobytes()
    assert (a.image_id, a.label) == (b.image_id, b.label)
    assert a.n_draws.tolist() == b.n_draws.tolist()


@pytest.mark.parametrize("shapes", [SHAPES, [(3, 2)], []])
def test_maps_come_back_bit_by_bit(root: Root, shapes: list[tuple[int, int]]) -> None:
    maps = ragged(shapes)
    assert_same(read_maps(root, store(root, maps)), maps)


def test_every_float32_comes_back_bit_by_bit(memory: Root) -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 2**18, np.uint32)  # NaN, subnormal, -0 too
    values = np.concatenate([[0, 1, 0x80000000], bits[3:]]).astype(np.uint32).view(np.float32)
    zeros = np.zeros((512, 512), np.float32)
    maps = RaggedMaps.pack([values.reshape(512, 512)], [zeros], [0.0], ["a"], ["b"], 2)
    assert_same(read_maps(memory, store(memory, maps)), maps)


def test_each_map_has_its_own_shape() -> None:
    rng = np.random.default_rng(0)
    means = [rng.random(shape, np.float32) for shape in SHAPES]
    names = [str(i) for i in range(len(SHAPES))]
    maps = RaggedMaps.pack(means, [mean + 1 for mean in means], range(5), names, names, 2)
    for i, mean in enumerate(means):
        assert_array_equal(maps.map(i), mean)
    with pytest.raises(ValueError, match=r"map 1: the mean \(1, 1\) and the m2 \(2, 1\)"):
        RaggedMaps.pack(means[:2], [means[0], np.zeros((2, 1), np.float32)], [1, 1], "ab", "cd", 2)


def test_the_standard_error_is_that_of_the_mean_of_the_draws() -> None:
    draws = np.random.default_rng(0).normal(0, 1e-3, (16, 5, 7))
    maps = RaggedMaps.pack(
        [draws.mean(0).astype(np.float32)],
        [((draws - draws.mean(0)) ** 2).sum(0).astype(np.float32)],
        [1.0],
        ["a"],
        ["b"],
        len(draws),
    )
    expected = draws.std(0, ddof=1) / np.sqrt(len(draws))
    np.testing.assert_allclose(maps.standard_error(0), expected, rtol=1e-5)
    single = replace(maps, n_draws=np.array([1], np.int32))
    with pytest.raises(ValueError, match="needs 2 draws or more that"):
        single.standard_error(0)


@pytest.mark.parametrize(
    "maps",
    [
        ragged(),
        ragged([(4, 4)]),
        RaggedMaps.pack(
            [np.zeros((9, 9), np.float32)], [np.zeros((9, 9), np.float32)], [0.0], "a", "b", 2
        ),
    ],
)
def test_a_unit_has_eleven_objects_whatever_its_maps(root: Root, maps: RaggedMaps) -> None:
    manifest = store(root, maps)
    assert {name.removeprefix("maps.zarr/") for name in manifest.files} == OBJECTS
    assert len(root.fs.find(root.path_of(manifest.attempt))) == 11
    assert_same(read_maps(root, manifest), maps)


def test_values_lie_in_one_shard_of_small_chunks(memory: Root) -> None:
    manifest = store(memory, ragged())
    values = sum(h * w for h, w in SHAPES)
    for name in ("values", "m2"):
        array: dict[str, Any] = read_json(memory, manifest, f"maps.zarr/{name}/zarr.json")
        assert array["zarr_format"] == 3
        assert array["data_type"] == "float32"
        assert array["shape"] == [values]
        assert array["chunk_grid"]["configuration"]["chunk_shape"] == [2 * 131_072]
        (sharding,) = array["codecs"]
        assert sharding["name"] == "sharding_indexed"
        assert sharding["configuration"]["chunk_shape"] == [131_072]
        blosc = sharding["configuration"]["codecs"][-1]
        assert blosc["name"] == "blosc"
        assert {key: blosc["configuration"][key] for key in ("cname", "clevel", "shuffle")} == {
            "cname": "zstd",
            "clevel": 5,
            "shuffle": "shuffle",
        }
    offsets = read_json(memory, manifest, "maps.zarr/offsets/zarr.json")
    assert (offsets["data_type"], offsets["shape"]) == ("int64", [len(SHAPES) + 1])
    hw = read_json(memory, manifest, "maps.zarr/hw/zarr.json")
    assert (hw["data_type"], hw["shape"]) == ("int32", [len(SHAPES), 2])


def test_any_zarr_reader_opens_a_unit(tmp_path: Path) -> None:
    root, maps = open_root(str(tmp_path)), ragged()
    manifest = store(root, maps)
    group = zarr.open_group(tmp_path / manifest.attempt / "maps.zarr", mode="r")
    assert group.attrs["label"] == maps.label
    assert group.attrs["image_id"] == maps.image_id
    assert group.attrs["n_draws"] == 16
    assert sorted(group.array_keys()) == sorted(ARRAYS)


def test_the_same_maps_are_the_same_bytes(memory: Root) -> None:
    once, again = Attempt(memory, UNIT), Attempt(memory, UNIT)
    write_maps(once, ragged())
    write_maps(again, ragged())
    assert once.files == again.files


def test_dask_sees_one_chunk_per_shard(root: Root) -> None:
    maps = ragged()
    arrays = open_maps_dask(root, store(root, maps))
    assert sorted(arrays) == sorted(ARRAYS)
    for name, array in arrays.items():
        assert array.npartitions == 1
        assert_array_equal(np.asarray(array), getattr(maps, name))
    assert_array_equal(np.asarray(arrays["values"][100:200]), maps.values[100:200])


def test_dask_sees_a_unit_without_maps(root: Root) -> None:
    arrays = open_maps_dask(root, store(root, ragged([])))
    assert np.asarray(arrays["values"]).shape == (0,)
    assert np.asarray(arrays["hw"]).shape == (0, 2)


def test_a_lost_object_is_an_error_and_not_zeros(root: Root) -> None:
    manifest = store(root, ragged())
    root.fs.rm(root.path_of(f"{manifest.attempt}/maps.zarr/values/c/0"))
    for read in (read_maps, open_maps_dask):
        with pytest.raises(CorruptFileError, match="values/c/0 is missing"):
            read(root, manifest)


def test_a_changed_object_is_an_error(root: Root) -> None:
    manifest = store(root, ragged())
    name = "maps.zarr/m2/c/0"
    data = bytearray(read_bytes(root, manifest, name))
    data[1000] ^= 1
    root.fs.pipe_file(root.path_of(f"{manifest.attempt}/{name}"), bytes(data))
    with pytest.raises(CorruptFileError, match="m2/c/0 is corrupt"):
        read_maps(root, manifest)


def test_a_unit_of_another_stage_has_no_maps(memory: Root) -> None:
    unit = Unit("patches", "1", (), {})
    manifest = complete(memory, unit, lambda attempt: attempt.write_json("a", 1))
    for read in (read_maps, open_maps_dask):
        with pytest.raises(InputError, match=rf"unit patches/{unit.key} has no maps"):
            read(memory, manifest)


def changed(name: str, array: npt.NDArray[Any]) -> RaggedMaps:
    maps = ragged([(4, 4), (2, 3)])
    setattr(maps, name, array)
    return maps


@pytest.mark.parametrize(
    ("maps", "says"),
    [
        (changed("values", np.zeros(21, np.float32)), r"values of 2 maps should be float32 \[22\]"),
        (
            changed("values", np.zeros(22, np.float64)),
            r"should be float32 \[22\], is float64 \[22\]",
        ),
        (changed("m2", np.zeros(23, np.float32)), r"m2 of 2 maps should be float32 \[22\]"),
        (
            changed("null_loss", np.zeros(1, np.float32)),
            r"null_loss of 2 maps should be float32 \[2\]",
        ),
        (changed("offsets", np.array([0, 16])), r"values of 2 maps should be float32 \[16\]"),
        (changed("offsets", np.array([22])), r"offsets of 2 maps should be int64 \[3\]"),
        (changed("offsets", np.array([0, 15, 22])), r"map 0 \(image 0{32}\) has 15 values"),
        (changed("offsets", np.array([1, 16, 22])), r"map 0 .* has 15 values"),
        (
            changed("hw", np.array([[4, 4], [3, 3]], np.int32)),
            r"map 1 .* its shape \[3, 3\] needs 9",
        ),
        (changed("hw", np.array([[4, 4], [-2, -3]], np.int32)), r"map 1 .* its shape \[-2, -3\]"),
        (changed("hw", np.zeros((2, 3), np.int32)), r"hw of 2 maps should be int32 \[2, 2\]"),
        (replace(ragged([(4, 4)]), label=[]), "1 maps have 0 labels"),
    ],
)
def test_maps_of_a_wrong_shape_are_named(memory: Root, maps: RaggedMaps, says: str) -> None:
    with pytest.raises(InputError, match=rf"unit typicality/{UNIT.key}: .*{says}"):
        store(memory, maps)


def test_stored_maps_of_a_wrong_shape_are_named(memory: Root) -> None:
    """A unit that another program wrote: map 1 is said to be 3 × 3."""
    good = complete(
        memory, replace(UNIT, algo="0"), lambda a: write_maps(a, ragged([(4, 4), (2, 3)]))
    )

    def produce(attempt: Attempt) -> None:
        other = Attempt(memory, UNIT)
        write_maps(other, ragged([(4, 4), (3, 3)]))
        for name in good.files:
            source = f"{other.folder}/{name}" if "/hw/" in name else f"{good.attempt}/{name}"
            attempt.write_bytes(name, memory.read_bytes(source))

    manifest = complete(memory, UNIT, produce)
    says = rf"unit typicality/{UNIT.key}: map 1 \(image .*1\) has 6 values, its shape \[3, 3\]"
    with pytest.raises(InputError, match=says):
        read_maps(memory, manifest)


def test_ids_and_labels_are_kept_as_text(memory: Root) -> None:
    names = ['"', "<b>", "日本", "a/b"]
    one = [np.ones((1, 1), np.float32)] * 4
    manifest = store(memory, RaggedMaps.pack(one, one, [1.0] * 4, names, names[::-1], 2))
    maps = read_maps(memory, manifest)
    assert (maps.image_id, maps.label) == (names, names[::-1])
    group = json.loads(read_bytes(memory, manifest, "maps.zarr/zarr.json"))
    assert group["attributes"]["label"] == names[::-1]
