from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path

import pytest
import torch

from diffmining_core.models import lanes
from diffmining_core.models.lanes import cores, cpu_allowance, in_lanes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch may use two, and so may the process."""
    before = torch.get_num_threads()
    monkeypatch.setattr(lanes, "cpu_allowance", lambda: None)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def over(items: Iterator[int] | range, work: Callable[[int], object]) -> Iterator[object]:
    """`work` of each item in lanes on the CPU."""
    return in_lanes(CPU, items, lambda item: item, lambda ready: lambda: work(ready))


def test_results_come_in_the_order_of_their_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.02 if item % 2 == 0 else 0)  # the later of two is done first
        return item * item

    assert list(over(range(9), work)) == [item * item for item in range(9)]
    assert list(over(range(0), work)) == []


def test_items_are_worked_on_side_by_side() -> None:
    both = threading.Barrier(2, timeout=30)
    assert list(over(range(4), lambda item: both.wait() >= 0)) == [True] * 4


def test_each_item_goes_through_all_three() -> None:
    said = in_lanes(
        CPU, ["a", "b"], lambda item: item + " read", lambda ready: lambda: ready + " done"
    )
    assert list(said) == ["a read done", "b read done"]


def test_items_are_taken_only_as_they_are_needed() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = over(items(), lambda item: item)
    assert taken == []
    assert next(results) == 0
    assert len(taken) <= 5  # two in work, as many that wait, and the one that is out
    results.close()  # type: ignore[attr-defined] # a generator


@pytest.mark.parametrize("part", ["prepare", "work", "fetch"])
def test_an_exception_comes_at_its_items_place_and_ends_all(part: str) -> None:
    begun: list[int] = []

    def failing(here: str, item: int) -> int:
        if here == "prepare":
            begun.append(item)
        if here == part and item == 2:
            raise ValueError("the third")
        return item

    def work(item: int) -> Callable[[], int]:
        failing("work", item)
        return lambda: failing("fetch", item)

    results = in_lanes(CPU, range(100), lambda item: failing("prepare", item), work)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert max(begun) < 8
    assert torch.get_num_threads() == 2


def test_what_waits_for_a_lane_is_not_begun_after_an_exception() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise ValueError("the first")
        time.sleep(0.5)  # both lanes are taken until after the exception

    with pytest.raises(ValueError, match="the first"):
        next(over(range(100), work))
    assert max(begun) <= 2  # the lane that failed may have gone on once


def test_context_variables_reach_the_lanes() -> None:
    setting = ContextVar("setting", default="none")
    setting.set("here")
    assert list(over(range(3), lambda item: setting.get())) == ["here"] * 3


def threads_of_a_new_thread() -> int:
    """Of an operation of torch in a thread that begins now."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_in_a_lane_an_operation_has_one_thread_and_elsewhere_as_many_as_before() -> None:
    def work(item: int) -> int:
        torch.ones(100, 100) @ torch.ones(100, 100)
        return torch.get_num_threads()

    for within in over(range(6), work):
        assert within == 1
        assert torch.get_num_threads() == cores() == threads_of_a_new_thread() == 2
    assert torch.get_num_threads() == threads_of_a_new_thread() == 2

    def fail(item: int) -> None:
        raise ValueError("of a lane")

    with pytest.raises(ValueError, match="of a lane"):
        list(over(range(3), fail))
    assert torch.get_num_threads() == threads_of_a_new_thread() == 2


def test_lanes_that_end_leave_other_lanes_as_they_are() -> None:
    longer = over(range(12), lambda item: torch.get_num_threads())
    assert next(longer) == 1
    assert list(over(range(3), lambda item: torch.get_num_threads())) == [1] * 3
    assert list(longer) == [1] * 11
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("text", "allowed"),
    [("max 100000\n", None), ("150000 100000\n", 1.5), ("400000 100000\n", 4.0), ("?", None)],
)
def test_the_control_group_says_what_is_allowed(
    tmp_path: Path, text: str, allowed: float | None
) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cpu_allowance(tmp_path) == allowed


def test_without_a_control_group_all_is_allowed(tmp_path: Path) -> None:
    assert cpu_allowance(tmp_path / "none") is None


@pytest.mark.parametrize(("allowed", "expected"), [(None, 2), (0.5, 1), (1.5, 1), (2.0, 2), (8, 2)])
def test_no_more_cores_than_are_allowed(
    monkeypatch: pytest.MonkeyPatch, allowed: float | None, expected: int
) -> None:
    monkeypatch.setattr(lanes, "cpu_allowance", lambda: allowed)
    assert cores() == expected


class Stream:
    """Stands in for a stream of CUDA: nothing runs on it, only the order is looked at."""

    def __init__(self, device: torch.device) -> None:
        assert device.type == "cuda"
        self.synchronized = 0

    def synchronize(self) -> None:
        self.synchronized += 1


class Read:
    """What an item is once it is ready."""

    def __init__(self, item: int) -> None:
        self.item = item


def test_on_a_gpu_the_next_is_started_before_a_result_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams: list[Stream] = []

    def entered(stream: Stream) -> AbstractContextManager[None]:
        streams.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", entered)
    main, said = threading.get_ident(), list[str]()
    held: dict[int, weakref.ref[Read]] = {}

    def prepare(item: int) -> Read:
        assert threading.get_ident() != main
        ready = Read(item)
        held[item] = weakref.ref(ready)
        return ready

    def work(ready: Read) -> Callable[[], int]:
        assert threading.get_ident() == main
        item = ready.item
        said.append(f"start {item}")

        def fetch() -> int:
            assert held[item]() is not None, "memory of the other stream was let go too early"
            said.append(f"fetch {item}")
            return item

        return fetch

    results = in_lanes(torch.device("cuda"), range(4), prepare, work)
    assert list(results) == [0, 1, 2, 3]
    order = ["start 0", "start 1", "fetch 0", "start 2", "fetch 1", "start 3", "fetch 2", "fetch 3"]
    assert said == order
    assert len(set(streams)) == 1
    assert streams[0].synchronized == len(streams) == 4
