from diffmining_core.images.tally import NAMED, Tally


def test_rows_are_counted_by_reason_and_the_first_are_named() -> None:
    tally = Tally.of((f"{n}.jpg", "too small") for n in range(5))
    tally.add("no label", "x.jpg")
    assert tally.as_json() == {
        "too small": {"count": 5, "names": ["0.jpg", "1.jpg", "2.jpg"]},
        "no label": {"count": 1, "names": ["x.jpg"]},
    }


def test_tallies_add_up() -> None:
    first, second = Tally.of([("a", "r"), ("b", "r")]), Tally.of([("c", "r"), ("d", "r")])
    first.update(second.as_json())
    assert first.as_json() == {"r": {"count": 4, "names": ["a", "b", "c"]}}
    assert len(first.names["r"]) == NAMED
