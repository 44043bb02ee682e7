from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from diffmining_core.errors import InputError
from diffmining_core.models.denoiser import Denoiser, rows_at_once
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.models.unet import cross_attentions

SHAPE = (4, 8, 8)
PROMPT_OF_ROW = torch.tensor([0, 0, 2, 1, 2, 0, 1])
ROWS = len(PROMPT_OF_ROW)
TIMESTEPS = [161, 500, 999]


@pytest.fixture(scope="module")
def untouched() -> Pipeline:
    """A pipeline to compare with, whose UNet is asked as diffusers has it."""
    return build(0)


@pytest.fixture(scope="module")
def embeds(untouched: Pipeline) -> torch.Tensor:
    return untouched.embed_prompts(["", "An image of Oslo.", "An image of Rome."])


@pytest.fixture
def pipeline() -> Pipeline:
    return build(0)


def noisy(shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(3))


def expected_noise(untouched: Pipeline, embeds: torch.Tensor, at: int) -> torch.Tensor:
    """What the UNet predicts of each row under its prompt."""
    timesteps = torch.full((ROWS,), TIMESTEPS[at])
    with torch.inference_mode():
        return untouched.predict_noise(noisy(), timesteps, embeds[PROMPT_OF_ROW])


def runs_out_of_memory(pipeline: Pipeline, fitting: int) -> list[int]:
    """From now on no more rows fit than these; the list is of the rows that were tried."""
    tried: list[int] = []

    def check(_module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        tried.append(len(arguments[0]))
        if len(arguments[0]) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate it.\nA long story")

    pipeline.unet.mid_block.register_forward_pre_hook(
        lambda module, arguments: check(module, arguments)
    )
    return tried


@pytest.mark.parametrize("at_once", [None, 1, 2, 3, ROWS, 100])
def test_each_row_has_its_prompt_however_many_go_at_once(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor, at_once: int | None
) -> None:
    heard: list[int] = []
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once, heard.append)
    for at in (2, 0, 1, 0):
        found = denoiser.predict_noise(noisy(), at)
        assert found.dtype == torch.float32
        expected = expected_noise(untouched, embeds, at)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert pipeline.unet_forwards == sum(heard) == 4 * ROWS
    assert max(heard) == min(at_once or ROWS, ROWS)


def test_a_velocity_is_read_as_noise(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor
) -> None:
    pipeline.scheduler.register_to_config(prediction_type="v_prediction")
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, torch.tensor(TIMESTEPS))
    velocity = expected_noise(untouched, embeds, 1)
    alpha_bar = untouched.scheduler.alphas_cumprod[TIMESTEPS[1]]
    expected = alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * noisy()
    torch.testing.assert_close(denoiser.predict_noise(noisy(), 1), expected, rtol=1e-4, atol=1e-5)


def test_in_half_precision_the_latents_alone_are_float32(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor
) -> None:
    pipeline.unet.to(torch.bfloat16)
    denoiser = Denoiser(pipeline, embeds.bfloat16(), PROMPT_OF_ROW, TIMESTEPS, at_once=4)
    found = denoiser.predict_noise(noisy(), 0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected_noise(untouched, embeds, 0), rtol=0.05, atol=0.05)


def test_what_is_kept_is_not_overwritten_by_the_next_forward(
    pipeline: Pipeline, embeds: torch.Tensor
) -> None:
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS)
    found = denoiser.predict_noise(noisy(), 0)
    kept = found.clone()
    denoiser.predict_noise(noisy() + 1, 0)
    assert torch.equal(found, kept)


def test_prompts_and_timesteps_are_looked_at_once(pipeline: Pipeline, embeds: torch.Tensor) -> None:
    seen: dict[str, list[int]] = {}

    def note(name: str) -> Callable[..., None]:
        calls = seen.setdefault(name, [])
        return lambda _module, arguments: calls.append(len(arguments[0]))

    layers = cross_attentions(pipeline.unet)
    for number, layer in enumerate(layers):
        layer.to_k.register_forward_pre_hook(note(f"keys {number}"))
        layer.to_v.register_forward_pre_hook(note(f"values {number}"))
    pipeline.unet.time_embedding.register_forward_pre_hook(note("time"))

    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once=3)
    for at in range(len(TIMESTEPS)):
        denoiser.predict_noise(noisy(), at)
    prompts = [calls for name, calls in seen.items() if name != "time"]
    assert prompts == [[len(embeds)]] * (2 * len(layers))
    assert seen["time"] == [len(TIMESTEPS)]


def test_an_activation_ends_at_its_block(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor
) -> None:
    seen: list[torch.Tensor] = []
    block = untouched.unet.up_blocks[1]
    hook = block.register_forward_hook(lambda _m, _a, output: seen.append(output))
    expected_noise(untouched, embeds, 0)
    hook.remove()
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once=3)
    found = denoiser.activation(noisy(), 0, up_block=1)
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at_once", [None, 6])
def test_out_of_memory_halves_the_rows_and_goes_on(
    pipeline: Pipeline,
    untouched: Pipeline,
    embeds: torch.Tensor,
    at_once: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = runs_out_of_memory(pipeline, 2)
    heard: list[int] = []
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once, heard.append)
    with caplog.at_level(logging.WARNING, "diffmining_core"):
        found = [denoiser.predict_noise(noisy(), at) for at in (0, 1)]
    for at in (0, 1):
        expected = expected_noise(untouched, embeds, at)
        torch.testing.assert_close(found[at], expected, rtol=1e-4, atol=1e-5)
    # 7 or 6 were too many, then 3; 1 at a time is known to go.
    assert tried[:3] == [at_once or ROWS, 3, 1]
    assert max(tried[2:]) == 1
    assert heard == [1] * 2 * ROWS
    assert pipeline.unet_forwards == 2 * ROWS  # what did not fit is no forward
    assert [record.message for record in caplog.records] == [
        f"{rows} rows of latents (4, 8, 8) do not fit into the memory of cpu; going on with "
        f"{rows // 2} at once"
        for rows in (at_once or ROWS, 3)
    ]


@pytest.mark.parametrize("at_once", [None, 6])
def test_what_fits_is_remembered_by_shape(
    pipeline: Pipeline, embeds: torch.Tensor, at_once: int | None
) -> None:
    assert rows_at_once(pipeline, SHAPE) == 128
    tried = runs_out_of_memory(pipeline, 3)
    Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once).predict_noise(noisy(), 0)
    assert rows_at_once(pipeline, SHAPE) == rows_at_once(pipeline, SHAPE, 6) == 3
    assert rows_at_once(pipeline, SHAPE, 2) == 2
    assert rows_at_once(pipeline, (4, 8, 16)) == 64
    tried.clear()
    Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once).predict_noise(noisy(), 0)
    assert tried == [3, 3, 1]


def test_memory_may_run_out_in_the_middle(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor
) -> None:
    """Another program has taken it; the rows that are done are not done again."""
    denoiser = Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, at_once=4)
    denoiser.predict_noise(noisy(), 0)
    runs_out_of_memory(pipeline, 2)
    found = denoiser.predict_noise(noisy(), 1)
    expected = expected_noise(untouched, embeds, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert pipeline.unet_forwards == 2 * ROWS


def test_a_single_row_that_does_not_fit_is_said_in_one_sentence(
    pipeline: Pipeline, embeds: torch.Tensor
) -> None:
    runs_out_of_memory(pipeline, 0)
    with pytest.raises(InputError) as raised:
        Denoiser(pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS).predict_noise(noisy(), 0)
    message = str(raised.value)
    assert message == (
        "A single row of latents (4, 8, 8) does not fit into the memory of cpu (CUDA out of "
        "memory. Tried to allocate it); take smaller images, or a device with more memory."
    )
    assert pipeline.unet_forwards == 0


def test_rows_that_need_one_another_all_go_or_none(
    pipeline: Pipeline, untouched: Pipeline, embeds: torch.Tensor
) -> None:
    pipeline.rows_at_once[SHAPE] = 2
    heard: list[int] = []
    denoiser = Denoiser(
        pipeline, embeds, PROMPT_OF_ROW, TIMESTEPS, on_forwards=heard.append, whole=True
    )
    found = denoiser.predict_noise(noisy(), 0)
    expected = expected_noise(untouched, embeds, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert heard == [ROWS]
    runs_out_of_memory(pipeline, ROWS - 1)
    with pytest.raises(torch.OutOfMemoryError):
        denoiser.predict_noise(noisy(), 0)
    assert pipeline.unet_forwards == ROWS
    assert pipeline.most_rows == {}


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 16, 16), 32), ((4, 8, 8), 128), ((4, 11, 9), 64), ((4, 64, 94), 1)]
)
def test_on_the_cpu_a_cache_decides_how_many_go_at_once(
    pipeline: Pipeline, shape: tuple[int, ...], expected: int
) -> None:
    assert rows_at_once(pipeline, shape) == expected


def on_cuda(dtype: torch.dtype) -> Pipeline:
    """As much of a pipeline on a GPU as is asked for its memory."""
    named = {"device": torch.device("cuda"), "dtype": dtype, "rows_at_once": {}, "most_rows": {}}
    return cast(Pipeline, SimpleNamespace(**named))


@pytest.mark.parametrize(
    ("free", "dtype", "shape", "expected"),
    [
        (130e9, torch.bfloat16, (4, 64, 64), 64),
        (130e9, torch.bfloat16, (4, 64, 94), 32),
        (22e9, torch.bfloat16, (4, 64, 64), 32),
        (22e9, torch.float32, (4, 64, 64), 16),
        (10e6, torch.bfloat16, (4, 64, 64), 1),
        (0, torch.bfloat16, (4, 64, 64), 1),
    ],
)
def test_on_a_gpu_its_free_memory_decides(
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    expected: int,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free), int(140e9)))
    pipeline = on_cuda(dtype)
    assert rows_at_once(pipeline, shape) == expected
    # What is cached is not free afterwards, but can be had again.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, int(140e9)))
    assert rows_at_once(pipeline, shape) == expected
