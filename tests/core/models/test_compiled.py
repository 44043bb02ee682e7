from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from diffusers import UNet2DConditionModel

from diffmining_core.models.compiled import COMPILE_ROWS, Compiled
from diffmining_core.models.denoiser import Denoiser
from diffmining_core.models.pipelines import Pipeline
from diffmining_core.models.tiny.train_base import build
from diffmining_core.models.unet import (
    embedded_timesteps,
    forward,
    keys_and_values,
    prepare,
)

SHAPE = (4, 8, 8)


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Nothing that was compiled before is met again."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def small(levels: int = 1) -> Pipeline:
    """A pipeline whose UNet has but one level or two, for that is soon compiled."""
    pipeline = build(0)
    torch.manual_seed(0)
    pipeline.unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D")[:levels],
        mid_block_type="UNetMidBlock2DCrossAttn" if levels > 1 else "UNetMidBlock2D",
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")[-levels:],
        block_out_channels=(16,) * levels,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    pipeline.__post_init__()
    return pipeline


@pytest.fixture
def pipeline() -> Pipeline:
    return small()


class Counting:
    """A backend of torch.compile that runs what it is given, and notes its inputs' shapes."""

    def __init__(self) -> None:
        self.compiled = 0
        self.runs: list[int] = []

    def __call__(
        self, module: torch.fx.GraphModule, inputs: list[torch.Tensor]
    ) -> Callable[..., Any]:
        self.compiled += 1

        def run(*arguments: torch.Tensor) -> Any:
            self.runs += [len(one) for one in arguments if one.shape[1:] == SHAPE][:1]
            return module(*arguments)

        return run


def compiling(pipeline: Pipeline, backend: str | Callable[..., Any]) -> Pipeline:
    """The pipeline, which compiles its UNet for SHAPE."""
    pipeline.compiled = Compiled(backend)
    pipeline.compiled.plan(SHAPE, COMPILE_ROWS)
    return pipeline


def denoiser(pipeline: Pipeline, rows: int, **options: Any) -> Denoiser:
    """Of rows under two prompts in turn, at two timesteps."""
    embeds = pipeline.embed_prompts(["", "An image of Oslo."])
    return Denoiser(pipeline, embeds, torch.arange(rows) % 2, [161, 500], **options)


def noisy(rows: int) -> torch.Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(3))


def test_the_forward_is_one_graph() -> None:
    pipeline = small(2)
    prepare(pipeline.unet)
    embeds = pipeline.embed_prompts(["", "An image of Oslo."])
    with torch.inference_mode():
        keys_values = keys_and_values(pipeline.unet, embeds)
        time = embedded_timesteps(pipeline.unet, torch.tensor([161]))
        arguments = (pipeline.unet, noisy(2), time, keys_values)
        compiled = torch.compile(forward, backend="eager", fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(*arguments), forward(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # compiles C++
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch's own
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler: g++")
def test_what_inductor_compiles_is_the_plain_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    pipeline = small()
    expected = denoiser(pipeline, 2).predict_noise(noisy(2), 0)
    # Here, and without trying which vector instructions there are: those took a third of the time.
    here = torch._inductor.config.patch({"cpp.vec_isa_ok": False, "compile_threads": 1})
    with caplog.at_level(logging.WARNING, "diffmining_core"), here:
        found = denoiser(compiling(pipeline, "inductor"), 2, at_once=2).predict_noise(noisy(2), 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert caplog.records == []


def test_only_shapes_met_often_are_compiled() -> None:
    compiled = Compiled("eager")
    compiled.plan((4, 8, 8), COMPILE_ROWS - 1)
    compiled.plan((4, 8, 9), COMPILE_ROWS)
    assert not compiled.wants((4, 8, 8))
    assert compiled.wants((4, 8, 9))


def test_nothing_is_compiled_without_a_backend() -> None:
    compiled = Compiled(None)
    compiled.plan(SHAPE, 100 * COMPILE_ROWS)
    assert not compiled.wants(SHAPE)


def test_on_the_cpu_nothing_is_compiled(pipeline: Pipeline) -> None:
    assert pipeline.compiled.backend is None


def test_a_compiled_forward_is_the_plain_one(pipeline: Pipeline) -> None:
    expected = [denoiser(pipeline, 5).predict_noise(noisy(5), at) for at in (0, 1)]
    ours = denoiser(compiling(pipeline, "eager"), 5, at_once=4)
    for at in (0, 1, 0):
        torch.testing.assert_close(
            ours.predict_noise(noisy(5), at), expected[at % 2], rtol=1e-4, atol=1e-5
        )


def test_remainders_are_filled_up_and_compile_nothing_of_their_own(pipeline: Pipeline) -> None:
    counting = Counting()
    compiling(pipeline, counting)
    heard: list[int] = []
    for rows in (7, 6, 1):
        expected_of = denoiser(small(), rows)
        ours = denoiser(pipeline, rows, at_once=4, on_forwards=heard.append)
        for at in (0, 1):
            expected = expected_of.predict_noise(noisy(rows), at)
            found = ours.predict_noise(noisy(rows), at)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert counting.compiled == 1
    assert set(counting.runs) == {4}
    # What is made up is no forward.
    assert heard == [4, 3, 4, 3, 4, 2, 4, 2, 1, 1]
    assert pipeline.unet_forwards == sum(heard)


def test_other_shapes_and_early_ends_are_not_compiled(pipeline: Pipeline) -> None:
    counting = Counting()
    ours = denoiser(compiling(pipeline, counting), 3, at_once=2)
    expected = denoiser(small(), 3).activation(noisy(3), 0, 0)
    found = ours.activation(noisy(3), 0, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    ours.predict_noise(torch.randn(3, 4, 8, 9), 0)
    assert counting.compiled == 0
    # The rows that are then made up are no others than those that were taken before.
    predicted = ours.predict_noise(noisy(3), 0)
    plain = denoiser(small(), 3).predict_noise(noisy(3), 0)
    torch.testing.assert_close(predicted, plain, rtol=1e-4, atol=1e-5)
    assert counting.compiled == 1


def test_what_a_cuda_graph_overwrites_was_copied(pipeline: Pipeline) -> None:
    kept: list[torch.Tensor] = []

    def replaying(
        module: torch.fx.GraphModule, _inputs: list[torch.Tensor]
    ) -> Callable[..., list[torch.Tensor]]:
        def run(*arguments: torch.Tensor) -> list[torch.Tensor]:
            (output,) = module(*arguments)
            if not kept:
                kept.append(output.clone())
            kept[0].copy_(output)
            return kept

        return run

    expected = denoiser(pipeline, 4).predict_noise(noisy(4), 0)
    found = denoiser(compiling(pipeline, replaying), 4, at_once=2).predict_noise(noisy(4), 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(kept) == 1


def test_rows_that_need_one_another_never_meet_the_compiled_unet(pipeline: Pipeline) -> None:
    counting = Counting()
    compiling(pipeline, counting)
    denoiser(pipeline, 2, at_once=2).predict_noise(noisy(2), 0)
    assert counting.compiled == 1
    # As Plug-and-Play does; of hooks that come later a compiled UNet takes no notice.
    block = pipeline.unet.up_blocks[0]
    hook = block.register_forward_hook(lambda _m, _a, output: torch.zeros_like(output))
    whole = denoiser(pipeline, 2, whole=True)
    hooked = whole.predict_noise(noisy(2), 0)
    hook.remove()
    plain = whole.predict_noise(noisy(2), 0)
    assert (hooked - plain).abs().max() > 1e-2
    assert len(counting.runs) == 1


def failing(_module: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
    """A backend that cannot compile."""
    raise RuntimeError("no compiler is here\nand much more")


@pytest.mark.parametrize(
    ("backend", "reason"), [(failing, "no compiler is here"), ("nobody's", "nobody's")]
)
def test_where_it_cannot_be_compiled_the_plain_one_goes_on(
    pipeline: Pipeline,
    caplog: pytest.LogCaptureFixture,
    backend: str | Callable[..., Any],
    reason: str,
) -> None:
    expected = [denoiser(pipeline, 5).predict_noise(noisy(5), at) for at in (0, 1)]
    before = pipeline.unet_forwards
    ours = denoiser(compiling(pipeline, backend), 5, at_once=4)
    with caplog.at_level(logging.WARNING, "diffmining_core"):
        for at in (0, 1):
            torch.testing.assert_close(
                ours.predict_noise(noisy(5), at), expected[at], rtol=1e-4, atol=1e-5
            )
    (record,) = caplog.records
    assert "could not be compiled" in record.message and reason in record.message
    assert "\n" not in record.message
    assert pipeline.unet_forwards - before == 10
    pipeline.compiled.plan(SHAPE, COMPILE_ROWS)
    assert not pipeline.compiled.wants(SHAPE)


@pytest.mark.parametrize("while_compiling", [True, False])
def test_out_of_memory_is_no_failure_to_compile(while_compiling: bool) -> None:
    def backend(module: torch.fx.GraphModule, _inputs: list[torch.Tensor]) -> Callable[..., Any]:
        def run(*_arguments: object) -> Any:
            raise torch.OutOfMemoryError("too many")

        return run(module) if while_compiling else run

    compiled = Compiled(backend)
    compiled.plan(SHAPE, COMPILE_ROWS)
    with pytest.raises(torch.OutOfMemoryError, match="too many"):
        compiled.run(torch.neg, torch.ones(2))
    assert compiled.wants(SHAPE)


def test_out_of_memory_halves_the_rows_that_are_compiled(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        if any(len(one) > 2 for one in inputs if one.shape[1:] == SHAPE):
            raise torch.OutOfMemoryError("too many")
        return module

    expected = denoiser(pipeline, 3).predict_noise(noisy(3), 0)
    # One row is made up, and there is no room for it either.
    ours = denoiser(compiling(pipeline, backend), 3, at_once=4)
    with caplog.at_level(logging.WARNING, "diffmining_core"):
        found = ours.predict_noise(noisy(3), 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (record,) = caplog.records
    assert record.message.startswith("4 rows of latents")
    assert pipeline.compiled.wants(SHAPE)
    assert pipeline.most_rows == {SHAPE: 2}
