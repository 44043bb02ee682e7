from __future__ import annotations

import math

import pytest
import torch

from diffmining_core.models.seeds import philox, seeded, standard_normal, uniform


def test_philox_gives_the_known_words() -> None:
    # Known-answer tests of the authors' Random123, kat_vectors: philox 4x32-10.
    words = philox(torch.tensor([0]), 0)
    assert [int(word) for word in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def philox_by_hand(counter: int, key: int) -> list[int]:
    """The same in Python's integers, which never overflow."""
    a, b, c, d = counter & 0xFFFFFFFF, counter >> 32, 0, 0
    low, high = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = a * 0xD2511F53, c * 0xCD9E8D57
        a, b = (second >> 32) ^ b ^ low, second & 0xFFFFFFFF
        c, d = (first >> 32) ^ d ^ high, first & 0xFFFFFFFF
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [a, b, c, d]


def test_philox_is_exact_for_every_key_and_counter() -> None:
    counters = [0, 1, 2**31, 2**32 - 1, 2**32 + 7, 2**40]
    for key in (1, 2**32 - 1, 2**63 + 12345, 2**64 - 1):
        words = torch.stack(philox(torch.tensor(counters), key), dim=-1)
        assert words.tolist() == [philox_by_hand(counter, key) for counter in counters]


def test_normals_are_normal() -> None:
    drawn = standard_normal((400_000,), 1, "normal").double()
    error = 5 / math.sqrt(len(drawn))  # five standard errors of a mean
    assert abs(drawn.mean()) < error
    assert abs((drawn**2).mean() - 1) < math.sqrt(2) * error
    assert abs((drawn**4).mean() - 3) < math.sqrt(96) * error
    # Neighbours come of one angle and one radius.
    assert abs((drawn[:-1] * drawn[1:]).mean()) < error
    within = (drawn.abs() < 1).double().mean()
    assert abs(within - math.erf(1 / math.sqrt(2))) < error


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 5), (4, 8, 8), (4, 11, 9), (0, 3)])
def test_every_shape_is_filled_by_the_first_of_the_same_numbers(shape: tuple[int, ...]) -> None:
    drawn = standard_normal(shape, 7, "x")
    assert (drawn.shape, drawn.dtype) == (shape, torch.float32)
    many = standard_normal((1000,), 7, "x")
    torch.testing.assert_close(drawn.flatten(), many[: drawn.numel()], rtol=0, atol=0)


def test_parts_decide_what_is_drawn() -> None:
    first = standard_normal((64,), 1, "a")
    assert torch.equal(first, standard_normal((64,), 1, "a"))
    others = [standard_normal((64,), *parts) for parts in [(1, "b"), (2, "a"), (1, "a", 0), ()]]
    for other in others:
        # Not even one of the numbers is the same.
        assert not (other == first).any()


def test_normals_are_drawn_on_the_device() -> None:
    # The meta device has shapes alone: what were made elsewhere and moved would not reach it.
    assert standard_normal((4, 3, 3), 1, device="meta").device.type == "meta"
    assert standard_normal((2,), 1, device=torch.device("cpu")).device.type == "cpu"


def test_uniform_numbers_fill_their_range() -> None:
    drawn = [uniform("u", i) for i in range(2000)]
    assert 0 <= min(drawn) < 0.01 and 0.99 < max(drawn) < 1
    assert abs(sum(drawn) / len(drawn) - 0.5) < 5 * math.sqrt(1 / 12 / len(drawn))
    assert uniform("u", 1) == drawn[1] != uniform("u", "1", "")


def test_generators_depend_on_their_parts_alone() -> None:
    torch.manual_seed(0)
    first = torch.rand(3, generator=seeded(1, "a"))
    torch.manual_seed(1)
    assert torch.equal(first, torch.rand(3, generator=seeded(1, "a")))
    assert not torch.equal(first, torch.rand(3, generator=seeded(1, "b")))
