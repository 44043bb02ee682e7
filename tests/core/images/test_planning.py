from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
import pytest

from diffmining_core.errors import InputError
from diffmining_core.images.planning import REPEATED, Listing, Part, Piece, plan_parts, plan_rows
from diffmining_core.images.shards import (
    SHARD_SCHEMA,
    FoundImage,
    IndexPlan,
    KeptShard,
    KnownShard,
    NewShard,
    Notes,
)
from diffmining_core.images.tally import Tally


def table_of(found: Sequence[FoundImage]) -> pa.Table:
    """A shard of these images, as far as the plan looks."""
    rows = [
        {
            "uri": f.uri,
            "label": f.label,
            "fingerprint": f.fingerprint,
            "declared": f.declared_size is not None,
            "width": f.width,
            "height": f.height,
            "detail": f.detail,
            "boxes": f.boxes or None,
        }
        for f in found
    ]
    return pa.Table.from_pylist(rows, schema=SHARD_SCHEMA)


def known(**shards: Sequence[FoundImage]) -> list[KnownShard]:
    return [KnownShard(key, None, partial(table_of, found)) for key, found in shards.items()]


def files(names: str, fingerprint: str = "1", label: str = "rome") -> list[FoundImage]:
    return [FoundImage(f"/d/rome/{name}", label, fingerprint) for name in names]


def listing(found: Sequence[FoundImage]) -> Listing:
    return Listing((image.uri, image) for image in found)


def planned(
    found: Sequence[FoundImage], before: Sequence[KnownShard], shard_rows: int = 10
) -> tuple[list[KeptShard], list[list[FoundImage]]]:
    plan = plan_rows(listing(found), before, shard_rows)
    new = list(plan.new)
    assert all(shard.part is None for shard in new)
    assert plan.images == sum(len(shard.images) for shard in new)
    return plan.keep, [shard.images for shard in new]


def names(shards: Sequence[Sequence[FoundImage]]) -> str:
    return "".join(sorted(image.uri[-1] for shard in shards for image in shard))


def test_a_first_index_is_cut_into_shards() -> None:
    keep, new = planned(files("abcdefg"), [], shard_rows=3)
    assert keep == []
    assert [len(shard) for shard in new] == [3, 3, 1]
    assert names(new) == "abcdefg"


def test_shards_do_not_depend_on_the_order_of_the_listing() -> None:
    found = [FoundImage(f"/d/{i}", f"l{i % 2}", "1", "a" * 32, 40, 50) for i in range(100)]
    shuffled = random.Random(0).sample(found, 100)
    assert planned(found, [], 30) == planned(shuffled, [], 30)
    assert listing(found).digest == listing(shuffled).digest
    assert listing(found[1:]).digest != listing(found).digest
    (first, *_) = planned(found, [], 50)[1]
    assert 10 < sum(image.label == "l0" for image in first) < 40


def test_all_that_was_listed_is_in_the_new_shards() -> None:
    found = [
        FoundImage("/d/ü\0'\"", "köln", "", None, None, None),
        FoundImage("/d/b", "a", "x" * 32, "x" * 32, 40, 50),
        FoundImage.faulty("/d/c", "", "it has no label"),
    ]
    (new,) = planned(found, [])[1]
    assert sorted(new, key=lambda image: image.uri) == sorted(found, key=lambda image: image.uri)


def test_an_index_with_nothing_new_keeps_its_shards() -> None:
    before = known(k2=files("def"), k1=files("abc"), k3=files("g"))
    keep, new = planned(files("gfedcba"), before, shard_rows=3)
    assert sorted(keep, key=lambda kept: kept.key) == [
        KeptShard(key, ()) for key in ("k1", "k2", "k3")
    ]
    assert new == []
    assert planned(files("abcdefg"), before, 100)[1] == []  # the size is that of new shards only


def test_new_images_come_as_new_shards() -> None:
    keep, new = planned(files("xabcyz"), known(k=files("abc")), shard_rows=2)
    assert keep == [KeptShard("k", ())]
    assert [len(shard) for shard in new] == [2, 1]
    assert names(new) == "xyz"


def test_rows_that_are_lost_changed_or_relabelled_are_dropped_and_their_shard_kept() -> None:
    before = known(k=files("abcdef"))
    assert planned(files("abdef"), before) == ([KeptShard("k", (2,))], [])
    for changed in (files("c", "2"), files("c", label="oslo"), [FoundImage.faulty("c", "", "x")]):
        keep, new = planned(files("abdef") + changed, before)
        assert keep == [KeptShard("k", (2,))]
        assert new == [changed]
    assert planned(files("xyz"), before)[0] == []


def test_a_declared_size_or_id_that_is_corrected_makes_a_new_row() -> None:
    declared = FoundImage("/d/a", "rome", "a" * 32, "a" * 32, 40, 50)
    before = known(k=[declared])
    assert planned([declared], before) == ([KeptShard("k", ())], [])
    for other in (
        FoundImage("/d/a", "rome", "b" * 32, "b" * 32, 40, 50),
        FoundImage("/d/a", "rome", "a" * 32, "a" * 32, 41, 50),
        FoundImage("/d/a", "rome", "a" * 32, "a" * 32),
    ):
        assert planned([other], before) == ([], [[other]])


def test_a_row_of_two_known_shards_counts_in_the_fuller_one() -> None:
    before = known(small=files("ab"), large=files("abc"), same=files("xy"), twin=files("xy"))
    assert planned(files("ab"), before)[0] == [KeptShard("large", (2,))]
    keep, new = planned(files("abcxy"), before)
    assert keep == [KeptShard("large", ()), KeptShard("same", ())]
    assert new == []
    overlapping = known(one=files("abcd"), two=files("dexy"))
    assert planned(files("abcdexy"), overlapping)[0] == [
        KeptShard("one", ()),
        KeptShard("two", (0,)),
    ]


def test_a_shard_without_rows_or_of_a_part_is_not_kept() -> None:
    before = [*known(k=[]), KnownShard("p", "/x.tar 1 0-1 end", partial(table_of, files("a")))]
    assert planned(files("a"), before) == ([], [files("a")])


def test_rows_that_are_there_twice_count_once() -> None:
    found = listing(files("aabac"))
    assert found.left_out.counts == {REPEATED: 2}
    assert found.left_out.names == {REPEATED: ["a"]}
    plan = plan_rows(found, [], 10)
    assert plan.images == 3
    assert names([shard.images for shard in plan.new]) == "abc"


def labelled(name: str, labels: str, fingerprint: str = "1") -> list[FoundImage]:
    return [FoundImage(f"/d/{name}", label, fingerprint) for label in labels]


def test_the_rows_of_an_image_are_never_parted() -> None:
    found = [row for i in range(40) for row in labelled(str(i), "abc"[: 1 + i % 3])]
    shuffled = random.Random(0).sample(found, len(found))
    keep, new = planned(shuffled, [], shard_rows=7)
    assert keep == []
    assert sorted(map(repr, (row for shard in new for row in shard))) == sorted(map(repr, found))
    assert all(len(shard) <= 7 for shard in new)
    for shard in new:
        uris = [row.uri for row in shard]
        for other in new:
            assert other is shard or not {row.uri for row in other} & set(uris)
        together = [uri for uri, before in zip(uris, [None, *uris], strict=False) if uri != before]
        assert len(together) == len(set(uris))
    assert planned(found, [], shard_rows=7) == (keep, new)
    assert planned(found, known(**{f"k{i}": s for i, s in enumerate(new)}))[1] == []


def test_an_image_of_more_labels_than_a_shard_has_rows_is_one_shard() -> None:
    found = labelled("x", "abcde") + labelled("y", "a")
    assert sorted(len(shard) for shard in planned(found, [], shard_rows=2)[1]) == [1, 5]


def test_an_image_that_gets_or_loses_a_label_is_new_with_all_its_labels() -> None:
    before = known(k=[*labelled("x", "ab"), *labelled("y", "ab")])
    for changed in ("abc", "a", "ac"):
        keep, new = planned(labelled("x", changed) + labelled("y", "ab"), before)
        assert keep == [KeptShard("k", (0, 1))]
        assert [sorted(row.label for row in shard) for shard in new] == [sorted(changed)]


def test_corrected_notes_make_no_new_image() -> None:
    box = (1.0, 2.0, 3.5, 4.0)
    plain, *others = files("abc")
    noted = FoundImage(plain.uri, plain.label, plain.fingerprint, detail="Lazio", boxes=(box,))
    before = known(k=[plain, *others])
    assert listing([noted]).digest != listing([plain]).digest
    corrected = KeptShard("k", (), (Notes(0, "Lazio", (box,)),))
    assert planned([noted, *others], before) == ([corrected], [])
    both = known(k=[plain, *others], made=[noted, *others])
    assert planned([noted, *others], both) == ([KeptShard("made", ())], [])
    assert planned([plain, *others], both) == ([KeptShard("k", ())], [])
    taken_back = KeptShard("made", (), (Notes(0, None, ()),))
    assert planned([plain, *others], known(made=[noted, *others])) == ([taken_back], [])


def test_of_a_row_that_is_there_twice_the_same_notes_count_in_any_order() -> None:
    (row,) = files("a")
    noted = [FoundImage(row.uri, row.label, "1", boxes=((float(i), 1, 1, 1),)) for i in range(5)]
    plans = [planned(order, [])[1] for order in (noted, noted[::-1])]
    assert plans[0] == plans[1]
    assert listing(noted).digest == listing(noted[::-1]).digest
    (kept,) = plans[0]
    assert planned(noted, known(k=kept)) == ([KeptShard("k", ())], [])


def test_images_of_one_name_in_two_folders_are_two() -> None:
    found = [FoundImage(f"/{folder}/1.png", "rome", "") for folder in "ab"]
    new = list(plan_rows(Listing(("1.png", image) for image in found), [], 10).new)
    assert sorted(row.uri for row in new[0].images) == ["/a/1.png", "/b/1.png"]
    again = plan_rows(Listing(("1.png", image) for image in found), known(k=new[0].images), 10)
    assert again.keep == [KeptShard("k", ())]


def test_any_history_of_a_folder_is_covered_once() -> None:
    """Every file in exactly one shard, kept shards unchanged, whatever came before."""
    chance = random.Random(0)
    shards: dict[str, list[FoundImage]] = {}
    for _ in range(60):
        found = [
            FoundImage(f"/d/rome/{i}", "rome", str(chance.randint(1, 2)))
            for i in chance.sample(range(30), chance.randint(0, 30))
        ]
        keep, new = planned(found, known(**shards), 4)
        kept = [
            image
            for shard in keep
            for row, image in enumerate(shards[shard.key])
            if row not in shard.dropped
        ]
        together = kept + [image for shard in new for image in shard]
        assert sorted(together, key=repr) == sorted(found, key=repr)
        for shard in new:
            shards[f"k{len(shards):03d}"] = shard
        assert planned(found, known(**shards), 4)[1] == []


PART = Part("/data/a part 1.tar", "5-x")


def images_of(part: Part, left_out: Tally, count: int = 5) -> Iterator[FoundImage]:
    return (FoundImage(f"{part.url}#{i}", "rome", part.fingerprint) for i in range(count))


def cut(plan: IndexPlan) -> list[NewShard]:
    return list(plan.new)


def known_parts(shards: Sequence[NewShard]) -> list[KnownShard]:
    return [KnownShard(f"k{i}", s.part, pytest.fail) for i, s in enumerate(shards)]


def unopened(part: Part, left_out: Tally) -> Iterator[FoundImage]:
    pytest.fail(f"{part.url} is opened")


def test_the_text_of_a_piece_says_all_of_it() -> None:
    piece = Piece(PART, 10, 20, is_last=False)
    assert Piece.parse(str(piece)) == piece
    assert str(piece) != str(Piece(PART, 10, 20, is_last=True))


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_part_is_cut_in_its_own_order_and_not_opened_again(count: int) -> None:
    parts = [PART, Part("/b.tar", "1")]
    plan = plan_parts(parts, [], 2, partial(images_of, count=count))
    assert plan.images is None
    new = cut(plan)
    assert [image for shard in new for image in shard.images] == [
        image for part in parts for image in images_of(part, Tally(), count)
    ]
    assert all(len({i.uri.rpartition("#")[0] for i in shard.images}) == 1 for shard in new)
    again = plan_parts(parts, known_parts(new), 100, unopened)
    assert again.keep == [KeptShard(f"k{i}", ()) for i in range(len(new))]
    assert again.images == 0
    assert cut(again) == []


def test_what_a_part_leaves_out_is_told_once_with_its_last_piece() -> None:
    def read(part: Part, left_out: Tally) -> Iterator[FoundImage]:
        left_out.add("no sample", "README")
        return images_of(part, left_out, 5 if part == PART else 0)

    plan = plan_parts([PART, Part("/empty.tar", "1")], [], 2, read)
    told = [shard.left_out.counts for shard in plan.new]
    assert told == [{}, {}, {"no sample": 1}]
    assert plan.left_out.counts == {"no sample": 1}


def test_only_parts_that_are_new_are_opened() -> None:
    new = cut(plan_parts([PART, Part("/b.tar", "1")], [], 10, images_of))
    changed = [PART, Part("/b.tar", "2"), Part("/c.tar", "1")]
    plan = plan_parts(changed, known_parts(new), 10, images_of)
    assert plan.keep == [KeptShard("k0", ())]
    assert [Piece.parse(shard.part or "").part for shard in plan.new] == changed[1:]


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_part_of_which_a_piece_is_missing_is_cut_again(lost: int) -> None:
    new = cut(plan_parts([PART], [], 2, images_of))
    left = known_parts(new)
    del left[lost]
    plan = plan_parts([PART], left, 2, images_of)
    assert plan.keep == []
    assert cut(plan) == new


def test_a_part_cut_in_two_ways_is_kept_once() -> None:
    first = cut(plan_parts([PART], [], 3, images_of))[:1]
    second = cut(plan_parts([PART], known_parts(first), 2, images_of))
    plan = plan_parts([PART], known_parts(first + second), 2, unopened)
    assert [kept.key for kept in plan.keep] == ["k1", "k2", "k3"]


def test_a_part_that_cannot_be_read_stops_no_other_and_is_named() -> None:
    def read(part: Part, left_out: Tally) -> Iterator[FoundImage]:
        if part.url.startswith("bad"):
            raise InputError(f"{part.url} is no readable tar")
        return images_of(part, left_out, 1)

    parts = [Part(url, "1") for url in ("bad1", "good1", "bad2", "good2")]
    plan = plan_parts(parts, [], 2, read)
    got: list[str] = []
    with pytest.raises(InputError, match="bad1 is no readable tar; bad2 is no readable tar"):
        got.extend(shard.images[0].uri for shard in plan.new)
    assert got == ["good1#0", "good2#0"]
