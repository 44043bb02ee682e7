"""Small datasets in the layouts in which five are published, with their oddities."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from written_images import photo, put

DECADES = {"a.jpg": 1953, "b.jpg": "1957", "c.jpg": 1921.0, "d.jpg": "unknown"}

COUNTRIES = ("Italy", "Japan", "Chile")
HEADINGS = (45, 135, 225, 315)

SCENES = {0: "/a/airfield", 8: "/a/apartment_building/outdoor", 342: "/u/underwater/ocean_deep"}

FINDINGS = {
    "1_0.png": "Infiltration|Pleural_Thickening",
    "1_1.png": "No Finding",
    "2_0.png": "Mass",
    "2_1.png": "Nodule|Mass",
    "3_0.png": "Effusion",
}

XRAY_HEADING = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)


def write_cardb(folder: str) -> None:
    """Years as numbers and text, one that is none; an entry without image, an image without."""
    for place, name in enumerate([*DECADES, "unnamed.jpg"]):
        put(folder, f"train/{name}", photo(place))
    records = {name: {"year": year, "make": "Ü"} for name, year in DECADES.items()}
    records["gone.jpg"] = {"year": 1933, "make": ""}
    put(folder, "train.json", json.dumps(records).encode())


def write_ftt(folder: str) -> None:
    """Folders of decades, in more than one format."""
    for place, name in enumerate(("1880/a.png", "1880/b.jpg", "2010/c.png")):
        put(folder, f"train/{name}", photo(place))
    put(folder, "train/notes.txt", b"")


def write_g3(folder: str) -> None:
    """Ids with zeros before them, a region with a comma and one that is empty, places that are not
    there, an excluded image, more columns than the five."""
    lines = ["id,country,region,sub-region,city,latitude,longitude,pano"]
    for place in range(6):
        region = ('"Lazio, south"', "")[place % 2]
        lines.append(f"000{place},{COUNTRIES[place % 3]},{region},,X,1.0,2.0,{place}")
        for heading in HEADINGS:
            put(folder, f"images/000{place}/{heading}.jpg", photo(10 * place + heading))
    lines += [f"9{place},Italy,,,X,1.0,2.0,9" for place in range(20)]
    put(folder, "metadata.csv", "\n".join(lines).encode())
    put(folder, "exclude.json", json.dumps(["0000/45.jpg", "nowhere/45.jpg"]).encode())


def write_places(folder: str, each: int = 2) -> None:
    """Class ids, nested names, one image that is not there and one of no class."""
    put(folder, "categories_places365.txt", _lines(f"{name} {n}" for n, name in SCENES.items()))
    lines = []
    for place, number in enumerate(SCENES):
        for i in range(each):
            name = f"Places365_val_{place * each + i:08d}.jpg"
            lines.append(f"{name} {number}")
            put(folder, f"images/{name}", photo(place * each + i))
    lines += ["Places365_val_99999999.jpg 0", "Places365_val_00000000.jpg 400"]
    put(folder, "places365_val.txt", _lines(lines))
    for place, scene in enumerate(SCENES.values()):
        put(folder, f"train{scene}/00000001.jpg", photo(1000 + place))


def write_xray(folder: str) -> None:
    """Several findings to an image, headings cut at commas, a finding spelt in two ways, images in
    folders as they unpack, and a box of a finding that the label file does not have."""
    lines = [XRAY_HEADING]
    for place, (name, findings) in enumerate(FINDINGS.items()):
        lines.append(f"{name},{findings},0,{place},57,M,PA,2682,2749,0.143,0.143")
        put(folder, f"images_00{1 + place % 2}/images/{name}", photo(place, 48, 48))
    put(folder, "Data_Entry_2017_v2020.csv", "\n".join(lines).encode())
    put(folder, "train_val_list.txt", _lines(["1_0.png", "1_1.png", "2_0.png"]))
    put(folder, "test_list.txt", _lines(["2_1.png", "3_0.png"]))
    boxes = [
        "Image Index,Finding Label,Bbox [x,y,w,h],,,",
        "1_0.png,Infiltrate,4.5,5.0,6.25,7.0",
        "2_1.png,Mass,1.0,2.0,3.0,4.0",
        "2_1.png,Mass,5.0,6.0,7.0,8.0",
        "3_0.png,Cardiomegaly,1.0,1.0,2.0,2.0",
    ]
    put(folder, "BBox_List_2017.csv", "\n".join(boxes).encode())


PUBLISHED: Mapping[str, Callable[[str], None]] = {
    "cardb": write_cardb,
    "ftt": write_ftt,
    "g3": write_g3,
    "places": write_places,
    "xray": write_xray,
}


def _lines(lines: object) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()  # type: ignore[attr-defined]


def folder_of(name: str, tmp_path: Path) -> str:
    """A folder with a small dataset in the layout of this name."""
    folder = str(tmp_path / name)
    PUBLISHED[name](folder)
    return folder
