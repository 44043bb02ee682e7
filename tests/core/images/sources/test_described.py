"""The five published layouts through their recipes, and what else a table may say."""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from published_layouts import COUNTRIES, HEADINGS, PUBLISHED, folder_of, write_places
from written_images import own_name, parquet_of, photo, put

from diffmining_core.errors import InputError
from diffmining_core.images.shards import FoundImage, IndexPlan, good, index_shard
from diffmining_core.images.sources import check_source, open_source
from diffmining_core.images.sources.described import OTHER_LABEL, UNNAMED
from diffmining_core.images.sources.layouts import Table, TableLayout
from diffmining_core.images.sources.rows import rows
from diffmining_core.images.sources.text_tables import STRAY_QUOTE, UNDECODED
from diffmining_core.recipes import MINED, TRAIN, load_recipe

COLOURS = TableLayout(table=Table("colours.csv"), image_file="{file}", label="colour")


def planned(folder: str, recipe: str, split: str) -> tuple[list[FoundImage], IndexPlan]:
    plan = open_source(folder, load_recipe(recipe).layout(split)).plan([], 1000)
    return [row for shard in plan.new for row in shard.images], plan


def said(found: Sequence[FoundImage]) -> list[tuple[str, str]]:
    """(name, label) of the good rows."""
    return sorted((own_name(row.uri), row.label) for row in found if row.fault is None)


def faults(found: Sequence[FoundImage]) -> list[tuple[str, str]]:
    return sorted((own_name(row.uri), row.fault) for row in found if row.fault is not None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_image_of_a_published_layout_is_found_read_and_seen_to_be_unchanged(
    name: str, url: str
) -> None:
    PUBLISHED[name](url)
    recipe = load_recipe(name)
    for split in recipe.layouts:
        check_source(url, recipe.layout(split))
        found, _ = planned(url, name, split)
        table = index_shard([row for row in found if row.fault is None])
        assert good(table).num_rows == table.num_rows > 0
        assert all(row.fingerprint for row in found)
        digests = {open_source(url, recipe.layout(split)).digest for _ in range(2)}
        assert len(digests) == 1


def test_cars_are_labelled_by_their_decades(tmp_path: Path) -> None:
    found, plan = planned(folder_of("cardb", tmp_path), "cardb", "mined")
    assert said(found) == [("a.jpg", "1950"), ("b.jpg", "1950"), ("c.jpg", "1920")]
    assert faults(found) == [("d.jpg", "its year 'unknown' is no number")]
    assert plan.left_out.counts == {
        "named in the table, but not there": 1,
        "there, but not named in the table": 1,
    }


@pytest.mark.parametrize("key", ["name", "file_name"])
def test_cars_may_be_listed_in_records(tmp_path: Path, key: str) -> None:
    folder = folder_of("cardb", tmp_path)
    records = [{key: "a.jpg", "year": 1939}, {key: "b.jpg"}, {"year": 1940}]
    (tmp_path / "cardb" / "train.json").write_text(json.dumps(records))
    found, _ = planned(folder, "cardb", "mined")
    assert said(found) == [("a.jpg", "1930")]
    assert [fault for _, fault in faults(found)] == ["it has no label", "its row names no file"]


def test_faces_are_labelled_by_their_folders(tmp_path: Path) -> None:
    found, _ = planned(folder_of("ftt", tmp_path), "ftt", "mined")
    assert said(found) == [("a.png", "1880"), ("b.jpg", "1880"), ("c.png", "2010")]


def test_streets_have_four_headings_a_country_and_a_region(tmp_path: Path) -> None:
    found, plan = planned(folder_of("g3", tmp_path), "g3", TRAIN)
    assert Counter(row.label for row in found) == {"Italy": 7, "Japan": 8, "Chile": 8}
    assert {own_name(row.uri) for row in found} == {f"{heading}.jpg" for heading in HEADINGS}
    by_place = {row.uri.split("/")[-2]: row.detail for row in found}
    assert by_place == {f"000{i}": "Lazio, south" if i % 2 == 0 else None for i in range(6)}
    assert not faults(found)
    assert plan.left_out.counts == {
        "named in the table, but not there": 80,
        "in the list of images to leave out": 1,
    }


def test_as_many_streets_of_a_country_are_mined_as_it_says_whatever_their_order(
    tmp_path: Path,
) -> None:
    folder = folder_of("g3", tmp_path)
    found, plan = planned(folder, "g3", MINED)
    assert {row.label for row in found} == {"Italy", "Japan"}
    assert plan.left_out.counts["of other labels"] == 8

    layout = load_recipe("g3").layout(MINED)
    assert isinstance(layout, TableLayout)
    three = replace(layout, per_label=3)
    chosen = [row for s in open_source(folder, three).plan([], 99).new for row in s.images]
    assert Counter(row.label for row in chosen) == {"Italy": 3, "Japan": 3}
    metadata = tmp_path / "g3" / "metadata.csv"
    head, *lines = metadata.read_text().splitlines()
    metadata.write_text("\n".join([head, *reversed(lines)]))
    again = [row for s in open_source(folder, three).plan([], 99).new for row in s.images]
    assert again == chosen


def test_scenes_have_the_names_of_their_class_ids(tmp_path: Path) -> None:
    found, _ = planned(folder_of("places", tmp_path), "places", MINED)
    assert Counter(row.label for row in found if not row.fault) == {
        "airfield": 2,
        "apartment_building_outdoor": 2,
        "underwater_ocean_deep": 2,
    }
    assert faults(found) == [
        ("Places365_val_00000000.jpg", "its label '400' has no name in categories_places365.txt"),
        ("Places365_val_99999999.jpg", "there is no such image"),
    ]


def test_scenes_to_train_on_have_the_names_of_their_nested_folders(tmp_path: Path) -> None:
    found, _ = planned(folder_of("places", tmp_path), "places", TRAIN)
    assert sorted(row.label for row in found) == [
        "airfield",
        "apartment_building_outdoor",
        "underwater_ocean_deep",
    ]


def test_at_most_a_hundred_images_of_a_scene_are_mined(tmp_path: Path) -> None:
    write_places(str(tmp_path), each=102)
    found, plan = planned(str(tmp_path), "places", MINED)
    assert set(Counter(row.label for row in found if not row.fault).values()) == {100}
    assert plan.left_out.counts == {"over the number per label": 6}


def test_a_repeated_row_takes_no_place_of_the_number_per_label(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(6)]
    for name in names:
        put(str(tmp_path), name, photo())
    lines = [f"{name},red" for name in names for _ in range(3)]
    (tmp_path / "colours.csv").write_text("\n".join(["file,colour", *lines]))
    layout = replace(COLOURS, per_label=4)
    (shard,) = open_source(str(tmp_path), layout).plan([], 10).new
    assert len({row.uri for row in shard.images}) == len(shard.images) == 4


def test_xrays_with_a_box_are_mined_under_all_their_findings(tmp_path: Path) -> None:
    found, plan = planned(folder_of("xray", tmp_path), "xray", MINED)
    boxes = {(own_name(row.uri), row.label): row.boxes for row in found}
    assert boxes == {
        ("1_0.png", "Infiltration"): ((4.5, 5.0, 6.25, 7.0),),
        ("1_0.png", "Pleural_Thickening"): (),
        ("2_1.png", "Nodule"): (),
        ("2_1.png", "Mass"): ((1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)),
        ("3_0.png", "Effusion"): (),
        ("3_0.png", "Cardiomegaly"): ((1.0, 1.0, 2.0, 2.0),),
    }
    assert plan.left_out.counts == {"without a box": 2}
    uris = [row.uri for row in found]
    assert uris == sorted(uris, key=uris.index), "the rows of an image lie side by side"


def test_xrays_of_the_list_are_trained_on(tmp_path: Path) -> None:
    found, plan = planned(folder_of("xray", tmp_path), "xray", TRAIN)
    assert said(found) == [
        ("1_0.png", "Infiltration"),
        ("1_0.png", "Pleural_Thickening"),
        ("1_1.png", "No Finding"),
        ("2_0.png", "Mass"),
    ]
    assert plan.left_out.counts == {"not in the list of images to take": 2}


@pytest.fixture
def published_csvs() -> Path:
    """The folder of torchxrayvision's data, which has the real files."""
    try:
        files = importlib.metadata.files("torchxrayvision") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchxrayvision is not installed")
    return next(Path(f.locate()).parent for f in files if f.name.startswith("BBox_List"))


def test_the_real_files_of_chestxray8_are_read_whole(published_csvs: Path, tmp_path: Path) -> None:
    for name in ("BBox_List_2017.csv.gz", "Data_Entry_2017_v2020.csv.gz"):
        shutil.copy(published_csvs / name, tmp_path / name)
    layout = load_recipe("xray").layout(MINED)
    assert isinstance(layout, TableLayout)
    published = str(tmp_path / "Data_Entry_2017_v2020.csv.gz")
    label_file = [row.values for row in rows(published, layout.table)]
    assert len({row["Image Index"] for row in label_file}) == len(label_file) == 112_120
    assert Counter(label for row in label_file for label in row["Finding Labels"].split("|")) == {
        "No Finding": 60_361, "Infiltration": 19_894, "Effusion": 13_317, "Atelectasis": 11_559,
        "Nodule": 6_331, "Mass": 5_782, "Pneumothorax": 5_302, "Consolidation": 4_667,
        "Pleural_Thickening": 3_385, "Cardiomegaly": 2_776, "Emphysema": 2_516, "Edema": 2_303,
        "Fibrosis": 1_686, "Pneumonia": 1_431, "Hernia": 227,
    }  # fmt: skip
    with gzip.open(tmp_path / "BBox_List_2017.csv.gz", "rt") as file:
        boxed = {row[0] for row in list(csv.reader(file))[1:]}
    for place, name in enumerate(sorted(boxed)):
        folder = tmp_path / f"images_{place % 12 + 1:03d}" / "images"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    found, plan = planned(str(tmp_path), "xray", MINED)
    assert not faults(found)
    assert (len({row.uri for row in found}), len(found)) == (880, 1915)
    assert plan.left_out.counts == {"without a box": 111_240}
    assert Counter(row.label for row in found if row.boxes) == {
        "Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123,
        "Pneumonia": 120, "Pneumothorax": 98, "Mass": 85, "Nodule": 79,
    }  # fmt: skip
    assert sum(len(row.boxes) for row in found) == 984
    (first,) = (r for r in found if r.boxes and own_name(r.uri) == "00013118_008.png")
    assert first.label == "Atelectasis"
    assert first.boxes == (
        (225.084745762712, 547.019216763771, 86.7796610169491, 79.1864406779661),
    )


HEADINGS_OF_BOXES = [
    "Image Index,Finding Label,Bbox [x,y,w,h]",
    "Image Index,Finding Label,Bbox [x,y,w,h],,,",
    'Image Index,Finding Label,"Bbox [x,y,w,h]"',
]


@pytest.mark.parametrize("heading", HEADINGS_OF_BOXES)
def test_boxes_are_read_whatever_is_cut_of_their_heading(tmp_path: Path, heading: str) -> None:
    folder = folder_of("xray", tmp_path)
    file = tmp_path / "xray" / "BBox_List_2017.csv"
    file.write_text(f"{heading}\n2_0.png,Mass,1,2,3,4\n")
    found, _ = planned(folder, "xray", MINED)
    assert [(row.label, row.boxes) for row in found] == [("Mass", ((1.0, 2.0, 3.0, 4.0),))]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("colours.csv", b"file,colour,x\nin/a.png,red,1\nb.png,blue,2\n"),
        ("colours.tsv", b"file\tcolour\nin/a.png\tred\nb.png\tblue\n"),
        ("colours.csv.gz", gzip.compress(b"file,colour\nin/a.png,red\nb.png,blue\n", mtime=0)),
        ("colours.json", b'{"in/a.png": {"colour": "red"}, "b.png": {"colour": "blue"}}'),
        (
            "colours.jsonl",
            b'{"file":"in/a.png","colour":"red"}\n\n{"file":"b.png","colour":"blue"}',
        ),
        ("colours.parquet", b""),
    ],
)
def test_tables_of_every_kind_name_images(url: str, name: str, data: bytes) -> None:
    import pyarrow as pa

    rows = {"file": ["in/a.png", "b.png"], "colour": ["red", "blue"]}
    put(url, name, data or parquet_of(pa.table(rows)))
    put(url, "in/a.png", photo(1))
    put(url, "b.png", photo(2))
    layout = TableLayout(table=Table(name, key="file"), image_file="{file}", label="colour")
    check_source(url, layout)
    assert said(list(open_source(url, layout).images())) == [("a.png", "red"), ("b.png", "blue")]


def test_a_file_that_comes_or_changes_changes_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "colours.csv").write_text("file,colour\na.png,red\nb.png,red\n")
    put(str(tmp_path), "a.png", photo(1))

    def digest() -> str:
        return open_source(str(tmp_path), COLOURS).digest

    before = digest()
    put(str(tmp_path), "other.png", photo(1))  # left out, and counted
    with_other = digest()
    put(str(tmp_path), "b.png", photo(2))
    with_both = digest()
    put(str(tmp_path), "b.png", photo(3, 50, 50))
    assert len({before, with_other, with_both, digest()}) == 4


def test_names_that_lead_out_of_the_folder_are_no_files(tmp_path: Path) -> None:
    put(str(tmp_path), "a.png", photo())
    put(str(tmp_path), "in/a.png", photo())
    (tmp_path / "in" / "colours.csv").write_text("file,colour\n../a.png,red\n/a.png,blue\n")
    found = [
        r for s in open_source(str(tmp_path / "in"), COLOURS).plan([], 9).new for r in s.images
    ]
    assert said(found) == [("a.png", "blue")]
    assert [fault for _, fault in faults(found)] == ["its row names no file"]
    (own,) = (row.uri for row in found if not row.fault)
    assert own == str(tmp_path / "in" / "a.png")


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "there is no such folder; with a recipe"),
        ({"a.png": photo()}, "there is no file colours.csv, which its recipe reads"),
        ({"colours.csv": b""}, "colours.csv is empty"),
        (
            {"colours.csv": b"file,colour\n"},
            "has no image with a label .no rows.; see what its rec",
        ),
        ({"colours.csv": b"file,colour\na,b\n"}, "1 × there is no such image"),
        ({"colours.csv": b"file,colour\n\xff\xfe,b\n"}, "1 × its line is not in UTF-8"),
        ({"colours.csv": b"file,Colour\na,b\n"}, "expected a column `colour`.* found file, Colour"),
        ({"colours.csv": b"file,colour,file\n"}, "two of its columns are called `file`"),
    ],
)
def test_a_folder_that_is_not_as_described_is_refused(
    url: str, files: dict[str, bytes], says: str
) -> None:
    for name, data in files.items():
        put(f"{url}/here", name, data)
    with pytest.raises(InputError, match=says):
        check_source(f"{url}/here", COLOURS)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("colours.json", b"[1]", "expected a JSON object for each row, found a number"),
        ("colours.json", b'"red"', "expected records in JSON, found text"),
        ("colours.json", b"{", "is no readable JSON"),
        ("colours.csv.gz", b"no gzip", "is no readable table"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: bytes, says: str
) -> None:
    put(str(tmp_path), name, data)
    layout = TableLayout(table=Table(name), image_file="{file}", label="colour")
    with pytest.raises(InputError, match=says) as caught:
        check_source(str(tmp_path), layout)
    assert name in str(caught.value)


def test_rows_that_cannot_be_used_are_set_aside_by_their_lines(tmp_path: Path) -> None:
    lines = [
        b"file,about,colour",
        b"a.png,one,red",
        b"b.png,one, two,red",  # an unquoted comma: the label would be "two"
        b'c.png,"one,red',
        b"d.png,red",
        b"",
        b"e.png,\xff,red",
        b'"f\0.png",one,red',
        b"g.png,one,   ",
        b"h.png,one,red,",
    ]
    (tmp_path / "colours.csv").write_bytes(b"\n".join(lines))
    for name in ("a.png", "g.png", "h.png"):
        put(str(tmp_path), name, photo())
    (shard,) = open_source(str(tmp_path), COLOURS).plan([], 99).new
    assert said(shard.images) == [("a.png", "red"), ("h.png", "red")]
    assert faults(shard.images) == [
        ("colours.csv#line=3", "its row has 4 fields, the first line 3"),
        ("colours.csv#line=4", STRAY_QUOTE),
        ("colours.csv#line=5", "its row has 2 fields, the first line 3"),
        ("colours.csv#line=7", UNDECODED),
        ("colours.csv#line=8", "its file name has control characters"),
        ("g.png", "it has no label"),
    ]


def test_lines_that_are_no_json_are_set_aside(tmp_path: Path) -> None:
    (tmp_path / "colours.jsonl").write_bytes(
        b'{"file": "a.png", "colour": "red"}\n{"file": \n[1]\n{"file": "\xff"}\n'
        b'{"file": "a.png", "colour": "\\ud800"}\n'
    )
    put(str(tmp_path), "a.png", photo())
    layout = replace(COLOURS, table=Table("colours.jsonl"))
    found = list(open_source(str(tmp_path), layout).images())
    assert [row.fault for row in found] == [
        None,
        "its line is no JSON",
        "its row is no JSON object but a list",
        UNDECODED,
        "its label is no text",
    ]


def test_a_bad_row_of_the_names_or_boxes_is_an_error(tmp_path: Path) -> None:
    folder = folder_of("xray", tmp_path)
    with (tmp_path / "xray" / "BBox_List_2017.csv").open("a") as file:
        file.write("\n2_0.png,Mass,1.0,2.0,3.0\n")
    with pytest.raises(InputError, match="line=6: its row has 5 fields"):
        planned(folder, "xray", MINED)


def test_images_without_a_row_are_counted_and_named_beside_other_reasons(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png", "in/e.png", "in/f.png"):
        put(str(tmp_path), name, photo())
    (tmp_path / "colours.csv").write_text("file,colour\na.png,red\nb.png,blue\n")
    plan = open_source(str(tmp_path), replace(COLOURS, labels=("red",))).plan([], 9)
    assert [own_name(row.uri) for shard in plan.new for row in shard.images] == ["a.png"]
    assert plan.left_out.as_json() == {
        UNNAMED: {"count": 4, "names": ["c.png", "d.png", "in/e.png"]},
        OTHER_LABEL: {"count": 1, "names": ["b.png"]},
    }


def test_a_box_without_numbers_is_named(tmp_path: Path) -> None:
    folder = folder_of("xray", tmp_path)
    with (tmp_path / "xray" / "BBox_List_2017.csv").open("a") as file:
        file.write("\n2_0.png,Mass,1.0,wide,3.0,4.0\n")
    with pytest.raises(InputError, match=r"line=6: a box should have .* but has 1.0, wide, 3"):
        planned(folder, "xray", MINED)


def test_the_countries_of_the_fixture_are_not_all_mined() -> None:
    layout = load_recipe("g3").layout(MINED)
    assert isinstance(layout, TableLayout)
    assert set(COUNTRIES) - set(layout.labels) == {"Chile"}


@pytest.mark.parametrize("size", ["9" * 400, "nan", "-3", "0"])
def test_a_box_of_no_size_is_named(tmp_path: Path, size: str) -> None:
    folder = folder_of("xray", tmp_path)
    with (tmp_path / "xray" / "BBox_List_2017.csv").open("a") as file:
        file.write(f"\n2_0.png,Mass,1.0,2.0,3.0,{size}\n")
    with pytest.raises(InputError, match=r"line=6: a box should have .* the last two over 0, but"):
        planned(folder, "xray", MINED)


@pytest.mark.parametrize("number", ["9" * 5000, "[" * 100_000])
def test_json_that_python_does_not_read_is_said(tmp_path: Path, number: str) -> None:
    good = '{"file": "a.png", "colour": "red"}'
    put(str(tmp_path), "a.png", photo())
    put(str(tmp_path), "c.json", f"[{good}, {number}]".encode())
    put(str(tmp_path), "c.jsonl", f"{good}\n{number}\n".encode())
    with pytest.raises(InputError, match=r"c\.json is no readable JSON"):
        open_source(str(tmp_path), replace(COLOURS, table=Table("c.json"))).digest  # noqa: B018
    with pytest.raises(InputError, match=r"c\.json is no readable JSON"):
        open_source(  # noqa: B018
            str(tmp_path), replace(COLOURS, table=Table("c.jsonl"), listed_in="c.json")
        ).digest
    found = list(open_source(str(tmp_path), replace(COLOURS, table=Table("c.jsonl"))).images())
    assert [image.fault for image in found] == [None, "its line is no JSON"]


@pytest.mark.parametrize("file", ["", ".", "sub", "su*"])
def test_a_table_that_is_a_folder_is_said(url: str, file: str) -> None:
    put(url, "sub/a.png", photo())
    with pytest.raises(InputError, match=r"there is no file .*, which its recipe reads"):
        check_source(url, replace(COLOURS, table=Table(file)))
