"""Every file of a folder, and every image of a tar, is indexed, set aside, or left out."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st
from written_images import photo, put, tar_of

from diffmining_core.images.shards import good, index_shard
from diffmining_core.images.sources import open_source

GOOD, ASIDE, LEFT = "indexed", "set aside", "left out"

PHOTO, NOTHING = photo(), b"no image"


class Outcome(NamedTuple):
    """What became of all rows of a source."""

    counts: Counter[str]
    named: bool
    """Whether every reason to leave something out names some of it."""


def outcome(url: str) -> Outcome:
    """The rows that a source's plan and shards account for."""
    plan = open_source(url).plan([], 7)
    counts: Counter[str] = Counter()
    tallies = [plan.left_out]
    for shard in plan.new:
        table = index_shard(shard.images)
        counts[GOOD] += good(table).num_rows
        counts[ASIDE] += table.num_rows - good(table).num_rows
        tallies.append(shard.left_out)
    counts[LEFT] = sum(tally.counts.total() for tally in tallies)
    named = all(tally.names[reason] for tally in tallies for reason in tally.counts)
    return Outcome(+counts, named)


def pipe(place: Path) -> None:
    os.mkfifo(place)


def dangling(place: Path) -> None:
    place.symlink_to("nowhere")


def device(place: Path) -> None:
    place.symlink_to("/dev/zero")


FILES: Sequence[tuple[str, bytes | Callable[[Path], None], str]] = [
    ("rome/{}.png", PHOTO, GOOD),
    ("rome/{}", PHOTO, GOOD),
    ("oslo/deep/{}.JFIF", PHOTO, GOOD),
    ("oslo/{}.2024", PHOTO, GOOD),
    ("rome/{}.jpg", NOTHING, ASIDE),
    ("rome/empty-{}.jpg", b"", ASIDE),
    ("rome/eps-{}.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n", ASIDE),
    ("oslo/{}.odd", NOTHING, ASIDE),
    ("oslo/small-{}.png", photo(0, 8, 8), ASIDE),
    ("oslo/pipe-{}.png", pipe, ASIDE),
    ("oslo/dangling-{}.png", dangling, ASIDE),
    ("rome/device-{}.png", device, ASIDE),
    ("{}.png", PHOTO, LEFT),
    ("rome/{}.txt", NOTHING, LEFT),
    ("rome/pipe-{}.csv", pipe, LEFT),
    ("rome/@eaDir/{}.png/SYNOPHOTO_THUMB_M.jpg", PHOTO, LEFT),
    ("__MACOSX/rome/._{}.png", NOTHING, LEFT),
    ("oslo/._{}.png", NOTHING, LEFT),
    ("oslo/.{}.png", PHOTO, LEFT),
]

SAMPLES: Sequence[tuple[dict[str, bytes], Counter[str]]] = [
    ({"{}.png": PHOTO, "{}.cls": b"rome"}, Counter({GOOD: 1})),
    ({"{}.05.png": PHOTO, "{}.05.cls": b"rome"}, Counter({GOOD: 1})),
    ({"{}.json": b'{"label": "rome"}', "{}.txt": b"x", "{}.PNG": PHOTO}, Counter({GOOD: 1})),
    (
        {"{}.depth.png": PHOTO, "{}.jpg": PHOTO, "{}.cls": b"\xef\xbb\xbfrome"},
        Counter({GOOD: 1, LEFT: 1}),
    ),
    ({"{}.png": PHOTO, "{}.jpg": PHOTO, "{}.cls": b"rome"}, Counter({ASIDE: 2})),
    ({"{}.png": NOTHING, "{}.cls": b"rome"}, Counter({ASIDE: 1})),
    ({"{}.png": PHOTO}, Counter({ASIDE: 1})),
    (
        {"{}.png": PHOTO, "{}.json": b'{"caption": "x"}', "{}.txt": b"x"},
        Counter({ASIDE: 1}),
    ),
    ({"{}.cls": b"rome"}, Counter({ASIDE: 1})),
    ({"._{}.png": PHOTO}, Counter({LEFT: 1})),
    ({"{}/__MACOSX/a.png": PHOTO}, Counter({LEFT: 1})),
    ({"{}.md": NOTHING}, Counter({LEFT: 1})),
]

few = settings(max_examples=60, deadline=None, database=None, derandomize=True)


@few
@given(st.lists(st.sampled_from(FILES), max_size=25))
def test_every_file_of_a_folder_is_accounted_for(files: list[tuple[str, object, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        put(folder, "rome/first.png", PHOTO)
        for number, (name, content, _) in enumerate(files):
            place = Path(folder, name.format(number))
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            elif callable(content):
                content(place)
        found = outcome(folder)
    assert found.counts == Counter([GOOD, *(becomes for _, _, becomes in files)])
    assert found.named


@few
@given(st.lists(st.sampled_from(SAMPLES), max_size=12), st.booleans())
def test_every_image_of_a_tar_is_accounted_for(
    samples: list[tuple[dict[str, bytes], Counter[str]]], in_folders: bool
) -> None:
    members, expected = {"first.png": PHOTO, "first.cls": b"oslo"}, Counter({GOOD: 1})
    for number, (sample, becomes) in enumerate(samples):
        before = f"{number}/" if in_folders else ""
        members |= {before + name.format(f"s{number}"): data for name, data in sample.items()}
        expected += becomes
    with tempfile.TemporaryDirectory() as folder:
        put(folder, "0.tar", tar_of(members))
        found = outcome(folder)
    assert found.counts == expected
    assert found.named
