from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from written_images import image_table, own_name, parquet_of, photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, KnownShard, NewShard, good, index_shard
from diffmining_core.images.sources import check_source, open_source

NAMES = '{"info": {"features": {"label": {"names": ["oslo", "rome"], "_type": "ClassLabel"}}}}'


def listed(url: str) -> list[FoundImage]:
    return list(open_source(url).images())


def as_known(shards: list[NewShard]) -> list[KnownShard]:
    return [KnownShard(f"k{i}", shard.part, pytest.fail) for i, shard in enumerate(shards)]


def test_images_are_read_from_their_rows(url: str) -> None:
    images = {f"folder/{i}.png": photo(i) for i in range(5)}
    put(url, "train.parquet", parquet_of(image_table(images, ["rome", "oslo"] * 2 + ["rome"]), 2))
    check_source(url)
    shards = list(open_source(url).plan([], 3).new)
    assert [len(shard.images) for shard in shards] == [3, 2]
    table = pa.concat_tables([index_shard(shard.images) for shard in shards])
    assert good(table).num_rows == 5
    assert [own_name(uri) for uri in table.column("uri").to_pylist()] == [
        f"{i}.png" for i in range(5)
    ]
    assert table.column("label").to_pylist() == ["rome", "oslo", "rome", "oslo", "rome"]


def test_label_numbers_have_the_names_of_the_metadata(tmp_path: Path) -> None:
    images = {f"{i}.png": b"" for i in range(4)}
    table = image_table(images, [1, 0, -1, None])
    place = tmp_path / "a.parquet"
    place.write_bytes(parquet_of(table.replace_schema_metadata({"huggingface": NAMES})))
    assert [image.label for image in listed(str(place))] == ["rome", "oslo", "", ""]
    assert [image.fault for image in listed(str(place))][2:] == ["it has no label"] * 2
    for metadata in ("{", "[" * 100_000):
        place.write_bytes(parquet_of(table.replace_schema_metadata({"huggingface": metadata})))
        assert [image.label for image in listed(str(place))] == ["1", "0", "-1", ""]


def test_a_class_number_without_a_name_is_said(tmp_path: Path) -> None:
    table = image_table({"a.png": b"", "b.png": b""}, [1, 7])
    place = tmp_path / "a.parquet"
    place.write_bytes(parquet_of(table.replace_schema_metadata({"huggingface": NAMES})))
    assert [image.fault for image in listed(str(place))] == [
        None,
        "its class number 7 is none of the 2 that its file names",
    ]


def test_plain_bytes_need_no_names(tmp_path: Path) -> None:
    table = pa.table({"picture": [photo(1), None], "labels": ["rome", "rome"]})
    (tmp_path / "part 1.parquet").write_bytes(parquet_of(table))
    found = listed(str(tmp_path / "part 1.parquet"))
    assert [own_name(image.uri) for image in found] == ["part 1-0", "part 1-1"]
    first, second = index_shard(found).to_pylist()
    assert first["set_aside"] is None
    assert second["set_aside"] == "its row holds no image"


def test_several_columns_of_bytes_need_one_called_image(tmp_path: Path) -> None:
    place = tmp_path / "a.parquet"
    place.write_bytes(parquet_of(pa.table({"a": [b"1"], "b": [b"2"], "label": ["x"]})))
    with pytest.raises(InputError, match="its columns a, b all hold bytes"):
        open_source(str(place))
    place.write_bytes(parquet_of(pa.table({"a": [b"1"], "image": [b"2"], "label": ["x"]})))
    assert [image.uri.partition("&")[2] for image in listed(str(place))] == ["column=image/a-0"]


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_of(pa.table({"image": [b"1"], "x": ["x"]})))
    with pytest.raises(InputError, match="one called `label`, found image, x"):
        check_source(str(tmp_path))


def test_only_new_files_are_opened(url: str) -> None:
    put(url, "a.parquet", parquet_of(image_table({"1.png": photo(1)}, ["rome"])))
    put(url, "b.parquet", parquet_of(image_table({"2.png": photo(2)}, ["rome"])))
    source = open_source(url)
    new = list(source.plan([], 10).new)
    assert open_source(url).plan(as_known(new), 10).images == 0
    put(url, "b.parquet", b"broken")  # its fingerprint is new, so it must be opened
    changed = open_source(url)
    assert changed.digest != source.digest
    plan = changed.plan(as_known(new), 10)
    assert [kept.key for kept in plan.keep] == ["k0"]
    with pytest.raises(InputError, match=r"b\.parquet is no readable Parquet file"):
        list(plan.new)


def test_a_file_that_is_replaced_after_its_listing_is_said(url: str) -> None:
    put(url, "a.parquet", parquet_of(image_table({"1.png": photo(1)}, ["rome"])))
    (shard,) = open_source(url).plan([], 10).new
    put(url, "a.parquet", parquet_of(image_table({"1.png": photo(2, 64)}, ["rome"])))
    with pytest.raises(InputError, match=r"a\.parquet has changed or gone since it was listed"):
        index_shard(shard.images)


LABELS = {
    "floats": (pa.array([1950.0, None, float("nan"), 0.5]), ["1950", "", "", "0.5"]),
    "bytes": (pa.array([b"rome", None, b"\xff", b" "]), ["rome", "", "", ""]),
    "large bytes": (pa.array([b"rome"] * 4, pa.large_binary()), ["rome"] * 4),
    "views": (pa.array(["rome"] * 4, pa.string_view()), ["rome"] * 4),
    "dictionary": (
        pa.array(["rome", "oslo", None, "rome"]).dictionary_encode(),
        ["rome", "oslo", "", "rome"],
    ),
    "dictionaries in lists": (
        pa.ListArray.from_arrays(
            [0, 1, 2, 2, 3], pa.array(["rome", "oslo", "rome"]).dictionary_encode()
        ),
        ["rome", "oslo", "", "rome"],
    ),
    "nothing": (pa.nulls(4), [""] * 4),
    "truths": (pa.array([True, False, None, True]), ["True", "False", "", "True"]),
}


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("form", ["images", "manifest"])
def test_labels_of_every_type_are_read(tmp_path: Path, kind: str, form: str) -> None:
    values, labels = LABELS[kind]
    images = {"image": [photo(i) for i in range(4)], "uri": [f"{i}.png" for i in range(4)]}
    column = {"images": "image", "manifest": "uri"}[form]
    place = tmp_path / "a.parquet"
    place.write_bytes(parquet_of(pa.table({column: images[column], "Label": values})))
    found = listed(str(place))
    assert [image.label for image in found] == labels
    assert [image.fault for image in found] == [
        None if label else "it has no label" for label in labels
    ]


@pytest.mark.parametrize("column", ["image", "uri"])
@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ({"label": [{"a": 1}]}, "its column `label` should hold labels .* but is struct<a: int64>"),
        (
            {"label": pa.array([0], pa.timestamp("s"))},
            "its column `label` should hold .* timestamp",
        ),
        ({"label": ["a"], "Labels": ["a"]}, "one column .* found `label` and `Labels`; rename"),
    ],
)
def test_labels_that_cannot_be_told_are_an_error(
    tmp_path: Path, column: str, labels: dict[str, object], says: str
) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet_of(pa.table({column: [b"a.png"], **labels})))
    with pytest.raises(InputError, match=says):
        check_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("column", ["image", "uri"])
def test_a_column_that_is_there_twice_is_named(tmp_path: Path, column: str) -> None:
    table = pa.table([[b"a.png"], ["rome"], ["oslo"]], [column, "label", "label"])
    (tmp_path / "a.parquet").write_bytes(parquet_of(table))
    with pytest.raises(InputError, match="found `label` and `label`; rename all but one"):
        check_source(str(tmp_path / "a.parquet"))
    table = pa.table([[b"a.png"], [b"b.png"], ["oslo"]], [column, column, "label"])
    (tmp_path / "a.parquet").write_bytes(parquet_of(table))
    with pytest.raises(InputError, match=f"found `{column}` and `{column}`; rename all but one"):
        check_source(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@pytest.mark.parametrize("is_struct", [False, True])
def test_bytes_of_every_type_are_read(tmp_path: Path, kind: pa.DataType, is_struct: bool) -> None:
    values = pa.array([photo(1), photo(2)], kind)
    if is_struct:
        values = pa.StructArray.from_arrays([values, pa.array(["1.png", None])], ["bytes", "path"])
    place = tmp_path / "A.PARQUET"
    place.write_bytes(parquet_of(pa.table({"Image": values, "label": ["rome"] * 2})))
    assert good(index_shard(listed(str(place)))).num_rows == 2


@pytest.mark.parametrize("kind", [pa.binary(), pa.null()])
def test_paths_without_bytes_are_an_error_and_single_ones_set_aside(
    tmp_path: Path, kind: pa.DataType
) -> None:
    def image_struct(values: pa.Array) -> pa.Table:
        paths = pa.array(["1.png", "2.png"])
        struct = pa.StructArray.from_arrays([values, paths], ["bytes", "path"])
        return pa.table({"image": struct, "label": ["rome"] * 2})

    place = tmp_path / "a.parquet"
    place.write_bytes(parquet_of(image_struct(pa.nulls(2, kind))))
    with pytest.raises(InputError, match="its column `image` has paths of images but not their"):
        check_source(str(place))
    place.write_bytes(parquet_of(image_struct(pa.array([photo(1), None]))))
    first, second = index_shard(listed(str(place))).to_pylist()
    assert first["set_aside"] is None
    assert "holds no image" in second["set_aside"]
