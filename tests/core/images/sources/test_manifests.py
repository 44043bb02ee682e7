from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import posixpath
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from written_images import image_table, own_name, parquet_of, photo, put, tar_of

from diffmining_core.errors import InputError
from diffmining_core.images.addresses import member_uri
from diffmining_core.images.planning import REPEATED
from diffmining_core.images.shards import LABEL_FAULT, FoundImage, KnownShard, good, index_shard
from diffmining_core.images.sources import check_source, open_source
from diffmining_core.images.sources.text_tables import STRAY_QUOTE


def listed(url: str) -> list[FoundImage]:
    return list(open_source(url).images())


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_kind_of_manifest_gives_its_rows(url: str, kind: str) -> None:
    rows = {
        "note": ["x", "y", "z"],
        "label": ["köln", "01", "rome, old"],
        "file_name": ["köln/1.png", "../up/2.png", "memory://far/3.png"],
    }
    if kind == "parquet":
        data = parquet_of(pa.table(rows), rows_per_group=2)
    else:
        separator = {"csv": ",", "tsv": "\t"}[kind]
        quote = {"csv": '"', "tsv": ""}[kind]
        lines = [rows.keys(), *zip(*rows.values(), strict=True)]
        data = "\n".join(
            separator.join(f"{quote}{cell}{quote}" for cell in line) for line in lines
        ).encode()
    put(url, f"in/manifest.{kind}", data)
    source = open_source(f"{url}/in/manifest.{kind}", allow=[f"{url}/up", "memory://far/"])
    assert list(source.images()) == [
        FoundImage(f"{open_source_url(url)}/in/köln/1.png", "köln", ""),
        FoundImage(f"{open_source_url(url)}/up/2.png", "01", ""),
        FoundImage("memory://far/3.png", "rome, old", ""),
    ]


def open_source_url(url: str) -> str:
    """As the file system writes it."""
    return url.replace("memory://", "memory:///")


def test_images_are_found_where_the_manifest_says(url: str) -> None:
    put(url, "images/a.png", photo(1))
    tar = tar_of({"b.png": photo(2)})
    put(url, "x.tar", tar)
    member = member_uri("x.tar", 512, 512 + len(photo(2)), "b.png")
    put(url, "m.csv", f"path,label\nimages/a.png,rome\n{member},oslo\ngone.png,rome\n".encode())
    check_source(f"{url}/m.csv")
    (shard,) = open_source(f"{url}/m.csv").plan([], 10).new
    table = index_shard(shard.images)
    assert {row["label"]: row["image_id"] for row in good(table).to_pylist()} == {
        "rome": sha256(photo(1))[:32],
        "oslo": sha256(photo(2))[:32],
    }
    assert table.column("declared").to_pylist() == [False] * 3
    (reason,) = table.column("set_aside").drop_null().to_pylist()
    assert reason.startswith("cannot be read")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_declared_image_is_not_opened(tmp_path: Path, kind: str) -> None:
    columns = {
        "uri": ["a.png", "b.png", "c.png"],
        "label": ["rome"] * 3,
        "sha256": [sha256(b"a"), sha256(b"b").upper(), sha256(b"c")],
        "width": [40, 4000, 20],
        "height": [50, 60, 20],
    }
    table = pa.table(columns)
    if kind == "parquet":
        (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    else:
        lines = [columns.keys(), *zip(*columns.values(), strict=True)]
        text = "\n".join(",".join(map(str, line)) for line in lines)
        (tmp_path / "m.csv").write_text(text)
    rows = index_shard(listed(str(tmp_path / f"m.{kind}"))).to_pylist()
    assert [row["declared"] for row in rows] == [True] * 3
    assert [row["image_id"] for row in rows] == [sha256(x)[:32] for x in (b"a", b"b", b"c")]
    assert [row["fingerprint"] for row in rows] == [row["image_id"] for row in rows]
    assert [(row["width"], row["height"]) for row in rows] == [(40, 50), (4000, 60), (20, 20)]
    assert rows[0]["set_aside"] is None
    assert "one side is over 8 times the other" in rows[1]["set_aside"]
    assert "shorter side is 20 px" in rows[2]["set_aside"]


def test_an_image_with_an_id_but_no_size_is_opened_and_checked(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(photo(1))
    (tmp_path / "m.csv").write_text(
        f"uri,label,image_id\na.png,rome,{sha256(photo(1))[:32]}\nb.png,rome,{'0' * 32}\n"
    )
    first, second = index_shard(listed(str(tmp_path / "m.csv"))).to_pylist()
    assert first["set_aside"] is None
    assert (first["width"], first["height"], first["declared"]) == (48, 40, False)
    assert second["set_aside"] == f"its image id is not {'0' * 32}, as the manifest says"


def test_sizes_without_an_id_are_not_believed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo(1))
    (tmp_path / "m.csv").write_text("uri,label,width,height\na.png,rome,7000,1\n")
    (row,) = index_shard(listed(str(tmp_path / "m.csv"))).to_pylist()
    assert (row["width"], row["height"], row["set_aside"]) == (48, 40, None)


BAD_ROWS = {
    ",rome,,,": "its row names no file",
    "a.png,,,,": "it has no label",
    "c.png, ,,,": "it has no label",
    "a.png,rome,xyz,,": "its image id 'xyz' is not 32 or 64 hex digits",
    "a.png,rome,,wide,5": "its width and height (wide, 5) are no numbers of pixels",
    "a.png,rome,,-1,5": "its width and height (-1, 5) are no numbers of pixels",
    "a.png,rome,,99999999999,5": "its width and height (99999999999, 5) are no numbers of pixels",
    "a.png,rome": "its row has 2 fields, the first line 5",
    "a.png,rome,,,,x": "its row has 6 fields, the first line 5",
    "d\0.png,rome,,,": "its file name has control characters",
    '"e\ne.png",rome,,,': "its file name has control characters",
    'f.png,"rome\noslo",,,': LABEL_FAULT,
    'g.png,"rome" x,,,': "one of its fields begins with a quote and does not end with one",
}


def test_rows_that_cannot_be_used_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    text = "\n".join(["uri,label,image_id,width,height", "b.png,oslo,,,", *BAD_ROWS])
    (tmp_path / "m.csv").write_text(text)
    (tmp_path / "b.png").write_bytes(photo())
    (shard,) = open_source(str(tmp_path / "m.csv")).plan([], 100).new
    table = index_shard(shard.images)
    assert good(table).column("label").to_pylist() == ["oslo"]
    assert sorted(table.column("set_aside").drop_null().to_pylist()) == sorted(BAD_ROWS.values())
    uris = sorted(uri.removeprefix(f"{tmp_path}/") for uri in set(table.column("uri").to_pylist()))
    assert [uri for uri in uris if "#" in uri] == [
        "m.csv#line=10", "m.csv#line=11", "m.csv#line=17", "m.csv#line=3"
    ]  # fmt: skip


def test_bad_values_in_parquet_are_set_aside(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": ["a.png", None, "c.png", "d.png"],
            "label": ["rome", "rome", None, "rome"],
            "width": [1.5, 40.0, None, float("nan")],
            "height": [40.0, 40.0, None, None],
        }
    )
    (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    faults = [image.fault for image in listed(str(tmp_path / "m.parquet"))]
    assert faults == [
        "its width and height (1.5, 40.0) are no numbers of pixels",
        "its row names no file",
        "it has no label",
        None,
    ]


def test_label_numbers_of_a_parquet_manifest_have_names(tmp_path: Path) -> None:
    features = (
        '{"info": {"features": {"label": {"names": ["oslo", "rome"], "_type": "ClassLabel"}}}}'
    )
    table = pa.table({"path": ["a.png", "b.png"], "label": [1, -1]})
    table = table.replace_schema_metadata({"huggingface": features})
    (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    assert [(i.label, i.fault) for i in listed(str(tmp_path / "m.parquet"))] == [
        ("rome", None),
        ("", "it has no label"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.csv", b"", "is empty"),
        ("m.csv", b"name,label\na,b\n", r"expected the columns `uri`.* found name, label"),
        ("m.csv", b"uri\na\n", r"expected the columns `uri`.* found uri"),
        ("m.csv", b"uri,label\n\xff\xfe,b\n", "1 × its line is not in UTF-8"),
        ("m.csv", b"uri,label\n", "it has no image with a label .no rows."),
        ("m.csv", b"uri,label\na.png,\n", "no image with a label .1 × it has no label."),
        ("m.parquet", b"PAR1", "is no readable Parquet file"),
        ("m.parquet", b"", "is no readable Parquet file"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused(
    url: str, name: str, data: bytes, says: str
) -> None:
    put(url, name, data)
    with pytest.raises(InputError, match=says) as caught:
        check_source(f"{url}/{name}")
    assert name in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_bytes(b"\xef\xbb\xbfuri,label\r\na.png,rome\r\n")
    assert [image.label for image in listed(str(tmp_path / "m.csv"))] == ["rome"]


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("m.csv", "URI,Label"),
        ("m.csv", " Path , Labels "),
        ("M.CSV", "uri,label"),
        ("M.TSV", "uri\tlabel"),
        ("m.csv.gz", "uri,label"),
        ("m.tsv.GZ", "uri\tlabel"),
    ],
)
def test_headings_and_endings_in_capitals_and_packed_tables_are_read(
    url: str, name: str, heading: str
) -> None:
    delimiter = "\t" if "\t" in heading else ", "
    text = f"{heading}\na.png{delimiter}rome\n".encode()
    put(url, name, gzip.compress(text) if name.lower().endswith(".gz") else text)
    assert [(i.uri[-5:], i.label) for i in listed(f"{url}/{name}")] == [("a.png", "rome")]
    assert [i.label for i in listed(f"{url}/*")] == ["rome"]


@pytest.mark.parametrize(
    ("heading", "says"),
    [
        ("uri,path,label", "called `uri` or .* found `uri` and `path`; rename all but one"),
        ("uri,label,Label", "called `label` or `labels`, found `label` and `Label`; rename"),
        ("uri,label,width,width", "called `width`, found `width` and `width`"),
        ("uri,label,image_id,sha256", "found `image_id` and `sha256`"),
    ],
)
def test_headings_of_which_several_may_be_meant_are_an_error(
    tmp_path: Path, heading: str, says: str
) -> None:
    (tmp_path / "m.csv").write_text(f"{heading}\na,b,c,d\n")
    with pytest.raises(InputError, match=says):
        check_source(str(tmp_path / "m.csv"))


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("image_id", [12], "its column `image_id` should hold the first 32 or all 64 .* is int64"),
        ("detail", [[1.0]], "its column `detail` should hold text, but is list"),
        ("uri", [1], "its column `uri` should hold the names of the images, but is int64"),
    ],
)
def test_a_column_of_another_type_is_named(
    tmp_path: Path, column: str, values: list[object], says: str
) -> None:
    table = pa.table({"uri": ["a.png"], "label": ["rome"]} | {column: values})
    (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    with pytest.raises(InputError, match=says):
        check_source(str(tmp_path / "m.parquet"))


def test_text_of_a_parquet_manifest_that_is_no_utf8_names_its_column(tmp_path: Path) -> None:
    names = pa.array([b"\xff.png"]).view(pa.string())
    table = pa.table({"uri": names, "label": ["rome"]})
    (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    with pytest.raises(InputError, match="its column `uri` has text that is not in UTF-8"):
        check_source(str(tmp_path / "m.parquet"))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_sizes_may_have_a_point_or_be_missing(tmp_path: Path, kind: str) -> None:
    sizes = [128.0, None, float("nan")]
    ids = [f"{i:032x}" for i in range(3)]
    uris = ["a.png", "b.png", "c.png"]
    if kind == "parquet":
        columns = {"uri": uris, "label": ["rome"] * 3, "image_id": ids}
        table = pa.table(columns | {"width": sizes, "height": sizes})
        (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    else:
        rows = zip(uris, ["rome"] * 3, ids, sizes, sizes, strict=True)
        with (tmp_path / "m.csv").open("w") as file:
            csv.writer(file).writerows([["uri", "label", "image_id", "width", "height"], *rows])
    found = listed(str(tmp_path / f"m.{kind}"))
    assert [image.fault for image in found] == [None] * 3
    assert [image.declared_size for image in found] == [(128, 128), None, None]


@pytest.mark.parametrize("name", ["quotes_one.tsv", "quotes_two.tsv", "quotes_two.csv"])
def test_rows_near_stray_quotes_are_not_lost(tmp_path: Path, name: str) -> None:
    names = [f"{label}/{i}.jpg" for label in ("hat", "shoes", "dress") for i in range(8)]
    stray = {"hat/5.jpg"} if name == "quotes_one.tsv" else {"hat/5.jpg", "shoes/7.jpg"}
    lines = [["uri", "title", "label"]]
    lines += [[n, '"Heroes' if n in stray else "a title", n.split("/")[0]] for n in names]
    delimiter = "\t" if name.endswith("tsv") else ","
    (tmp_path / name).write_text("".join(f"{delimiter.join(line)}\n" for line in lines))
    found = listed(str(tmp_path / name))
    assert len(found) == 24
    assert {image.label for image in found if not image.fault} == {"hat", "shoes", "dress"}
    aside = {image.uri.rpartition("#")[2]: image.fault for image in found if image.fault}
    assert aside == ({} if delimiter == "\t" else dict.fromkeys(["line=7", "line=17"], STRAY_QUOTE))


class Fed(NamedTuple):
    """A row as it is written; forms: of manifests that can say it, raw if no writer would."""

    uri: str
    label: str
    extra: tuple[str, ...] = ()
    is_sound: bool = True
    forms: str = "csv tsv parquet"


def sound_rows() -> st.SearchStrategy[Fed]:
    names = st.text("abcé/ #%", min_size=1, max_size=5).map(lambda text: f"x{text}x.png")
    labels = st.text("abé ,'", min_size=1, max_size=5).map(lambda text: f"x{text}x")
    captions = st.sampled_from(["", "one", "a, b", "two\nlines, of text\n", 'a "b"'])
    return st.builds(
        lambda name, label, caption: Fed(
            name,
            label,
            (caption,),
            forms="tsv csv parquet" if caption in ("", "one") else "csv parquet",
        ),
        names,
        labels,
        captions,
    )


BAD = [
    Fed("", "rome", ("",), False),
    Fed("a.png", " ", ("",), False),
    Fed("a\0.png", "rome", ("",), False),
    Fed("a.png", "rome", (), False, "csv tsv"),
    Fed("a.png", "rome", ("", "x"), False, "csv tsv"),
    Fed("a\nb.png", "rome", ("",), False, "csv parquet"),
    Fed("a.png", '"rome', ("",), False, "raw csv"),
    Fed("a.png", '"ro"me', ("",), False, "raw csv"),
    Fed("b\udcff.png", "rome", ("",), False, "raw csv tsv"),
]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.one_of(sound_rows(), st.sampled_from(BAD)), max_size=12),
    st.sampled_from(["csv", "tsv", "parquet"]),
    st.integers(1, 5),
)
def test_every_row_that_is_fed_is_indexed_set_aside_or_left_out(
    tmp_path: Path, fed: list[Fed], form: str, shard_rows: int
) -> None:
    fed = [row for row in fed if form in row.forms.split()]
    file = tmp_path / f"m.{form}"
    file.write_bytes(manifest_of(fed, form))
    source = open_source(str(file))
    listed_rows = list(source.images())
    assert [row.fault is None for row in listed_rows] == [row.is_sound for row in fed]
    plan = source.plan([], shard_rows)
    images = [image for shard in plan.new for image in shard.images]
    assert len(fed) == len(images) + plan.left_out.counts.total()
    sound = {(posixpath.normpath(f"{tmp_path}/{r.uri}"), r.label) for r in fed if r.is_sound}
    assert {(image.uri, image.label) for image in images if image.fault is None} == sound
    assert plan.left_out.counts.keys() <= {REPEATED}


def manifest_of(fed: list[Fed], form: str) -> bytes:
    """The rows in a manifest, with whatever is wrong with them."""
    heading = ("uri", "label", "caption")
    if form == "parquet":
        columns = zip(*((row.uri, row.label, *row.extra) for row in fed), strict=True)
        values = list(columns) or [()] * 3
        return parquet_of(pa.table([pa.array(list(v), pa.string()) for v in values], heading))
    text = io.StringIO()
    writer = csv.writer(text)
    for row in [heading, *((row.uri, row.label, *row.extra) for row in fed)]:
        is_raw = any("raw" in bad.forms and row[:2] == (bad.uri, bad.label) for bad in BAD)
        if form == "tsv" or is_raw:
            text.write({"csv": ",", "tsv": "\t"}[form].join(row) + "\n")
        else:
            writer.writerow(row)
    return text.getvalue().encode(errors="surrogateescape")


def test_several_manifests_are_one_dataset(url: str) -> None:
    for i in range(3):
        put(url, f"parts/{i}.csv", f"uri,label\n{i}.png,rome\n".encode())
    put(url, "parts/notes.txt", b"")
    found = listed(f"{url}/parts/*.csv")
    assert [image.uri[-5:] for image in found] == ["0.png", "1.png", "2.png"]


def test_the_digest_changes_with_the_manifest_and_the_plan_with_its_rows(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("uri,label\na.png,rome\nb.png,rome\n")
    source = open_source(str(manifest))
    (shard,) = source.plan([], 10).new
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(photo())
    table = index_shard(shard.images)
    known = [KnownShard("k", shard.part, lambda: table)]
    manifest.write_text("uri,label\nc.png,rome\nb.png,oslo\na.png,rome\n")
    changed = open_source(str(manifest))
    assert changed.digest != source.digest
    plan = changed.plan(known, 10)
    assert [image.uri[-5:] for image in next(plan.new).images] in (
        ["b.png", "c.png"],
        ["c.png", "b.png"],
    )
    uris = table.column("uri").to_pylist()
    (kept,) = plan.keep
    assert [uris[row][-5:] for row in kept.dropped] == ["b.png"]


def test_images_in_a_parquet_file_are_told_from_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_bytes(parquet_of(image_table({"a.png": photo()}, ["rome"])))
    (found,) = listed(str(tmp_path / "m.parquet"))
    assert found.uri.endswith("m.parquet#row=0&column=image/a.png")


def test_a_row_may_have_several_labels_a_detail_and_boxes_of_each(tmp_path: Path) -> None:
    rows = {
        "uri": ["a.png", "b.png", "./a.png"],
        "labels": ["mass|effusion", "mass", "nodule|"],
        "detail": ["left", "", ""],
        "boxes": ['{"mass": [[1, 2, 3, 4]]}', "[[5, 6, 7.5, 8], [1, 1, 1, 1]]", ""],
    }
    columns = {
        **rows,
        "labels": [["mass", "effusion"], ["mass"], ["nodule"]],
        "boxes": [rows["boxes"][0], rows["boxes"][1], None],
    }
    (tmp_path / "m.parquet").write_bytes(parquet_of(pa.table(columns)))
    lines = [list(rows), *zip(*rows.values(), strict=True)]
    with (tmp_path / "m.csv").open("w") as file:
        csv.writer(file).writerows(lines)
    for name in ("m.csv", "m.parquet"):
        shards = list(open_source(str(tmp_path / name)).plan([], 2).new)
        assert sorted(len(shard.images) for shard in shards) == [1, 3], "an image is never parted"
        found = {
            (row.uri[-5:], row.label): (row.detail, row.boxes)
            for shard in shards
            for row in shard.images
        }
        assert found == {
            ("a.png", "mass"): ("left", ((1.0, 2.0, 3.0, 4.0),)),
            ("a.png", "effusion"): ("left", ()),
            ("a.png", "nodule"): (None, ()),
            ("b.png", "mass"): (None, ((5.0, 6.0, 7.5, 8.0), (1.0, 1.0, 1.0, 1.0))),
        }


def test_boxes_of_a_parquet_manifest_may_be_lists(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a.png"], "label": ["mass"], "boxes": [[[1.0, 2.0, 3.0, 4.0]]]})
    (tmp_path / "m.parquet").write_bytes(parquet_of(table))
    (found,) = listed(str(tmp_path / "m.parquet"))
    assert found.boxes == ((1.0, 2.0, 3.0, 4.0),)


@pytest.mark.parametrize(
    ("labels", "boxes"),
    [
        ("mass|nodule", "[[1, 2, 3, 4]]"),
        ("mass", '{"nodule": [[1, 2, 3, 4]]}'),
        ("mass", "[[1, 2, 3]]"),
        ("mass", "[1, 2, 3, 4]"),
        ("mass", "wide"),
        ("mass", "[" * 5000),
        ("mass", f"[[1, 2, 3, {'9' * 400}]]"),
        ("mass", "[[NaN, 2, 3, 4]]"),
        ("mass", "[[1, 2, 3, 1e400]]"),
        ("mass", "[[1, 2, -3, 4]]"),
        ("mass", "[[1, 2, 3, 0]]"),
    ],
)
def test_boxes_that_are_no_boxes_set_their_image_aside(
    tmp_path: Path, labels: str, boxes: str
) -> None:
    with (tmp_path / "m.csv").open("w") as file:
        csv.writer(file).writerows([["uri", "labels", "boxes"], ["a.png", labels, boxes]])
    (found,) = listed(str(tmp_path / "m.csv"))
    assert f"its boxes ({boxes[:80]}) are no lists of left, top" in (found.fault or "")


@pytest.mark.parametrize(
    "place", [f"x.tar#bytes={'9' * 5000}-1/a.jpg", f"x.parquet#row={'9' * 5000}&column=image/a.jpg"]
)
def test_an_endless_number_in_an_address_sets_one_row_aside(tmp_path: Path, place: str) -> None:
    put(str(tmp_path), "b.png", photo())
    put(str(tmp_path), "m.csv", f"uri,label\n{place},rome\nb.png,rome\n".encode())
    table = index_shard(listed(str(tmp_path / "m.csv")))
    assert [own_name(row["uri"]) for row in good(table).to_pylist()] == ["b.png"]


def test_a_class_number_without_a_name_is_said(tmp_path: Path) -> None:
    feature = {"_type": "ClassLabel", "names": ["rome"]}
    metadata = {"huggingface": json.dumps({"info": {"features": {"label": feature}}})}
    table = pa.table({"uri": ["a.png", "b.png", "c.png"], "label": [0, 1, -1]})
    (tmp_path / "m.parquet").write_bytes(parquet_of(table.replace_schema_metadata(metadata)))
    assert [found.fault for found in listed(str(tmp_path / "m.parquet"))] == [
        None,
        "its class number 1 is none of the 1 that its file names",
        "it has no label",
    ]
