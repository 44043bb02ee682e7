from __future__ import annotations

import numpy as np
import pytest

from diffmining_core.finetuning.losses import (
    BINS,
    Evaluation,
    History,
    held_out_summary,
    rising_since,
)
from diffmining_core.finetuning.options import FinetuneOptions


def filled(steps: int) -> tuple[History, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    losses = rng.uniform(size=(steps, 6)).astype(np.float32)
    bins = rng.integers(0, 4, (steps, 6))  # the other bins stay empty
    history = History.of(steps)
    for step in range(steps):
        mean = history.note(step, losses[step], bins[step])
        assert mean == pytest.approx(losses[step].mean())
    return history, losses, bins


def test_losses_by_timestep_are_the_means_of_their_images() -> None:
    history, losses, bins = filled(120)
    columns = history.as_json(FinetuneOptions(steps=120, batch_size=6))
    ends = [0, *columns["bins"]["step"]]
    assert ends[-1] == 120 and len(ends) == 51
    for start, end, row in zip(ends[:-1], ends[1:], columns["bins"]["loss"], strict=True):
        for number in range(BINS):
            own = losses[start:end][bins[start:end] == number]
            expected = own.mean() if len(own) else None
            assert row[number] == (pytest.approx(expected, abs=2e-6) if len(own) else None)


def test_a_history_comes_back_from_a_checkpoint() -> None:
    history, _, _ = filled(8)
    rng = np.random.default_rng(1)
    for step in (0, 4, 8):
        tables = rng.uniform(size=(2, 3, BINS)).astype(np.float32)
        history.evaluations.append(Evaluation(step, *tables))
    back = History.of(8)
    back.restore(history.to_arrays(5))
    np.testing.assert_array_equal(back.losses[:5], history.losses[:5])
    assert not back.losses[5:].any()
    assert [evaluation.step for evaluation in back.evaluations] == [0, 4]
    np.testing.assert_array_equal(back.evaluations[1].seen, history.evaluations[1].seen)
    empty = History.of(3)
    empty.restore(History.of(3).to_arrays(2))
    assert empty.evaluations == []


def evaluations(*means: float, spread: float) -> list[Evaluation]:
    """Measurements with these means, of 16 images that differ and change by `spread` each."""
    rng = np.random.default_rng(2)
    images = rng.uniform(0, 0.5, (16, 1))
    tables = (
        np.repeat(images + mean + rng.normal(0, spread, (16, 1)), BINS, 1).astype(np.float32)
        for mean in means
    )
    return [Evaluation(100 * i, table, table) for i, table in enumerate(tables)]


def test_overfitting_shows_where_it_is_more_than_chance() -> None:
    rising = held_out_summary(evaluations(0.5, 0.3, 0.4, spread=0.01))
    assert rising is not None
    assert (rising.best_step, rising.rose) == (100, True)
    assert rising.end - rising.least == pytest.approx(0.1, abs=0.02)
    noisy = held_out_summary(evaluations(0.5, 0.3, 0.31, spread=0.1))
    assert noisy is not None and not noisy.rose
    assert held_out_summary([]) is None
    alone = held_out_summary([Evaluation(0, *np.ones((2, 1, BINS), np.float32))])
    assert alone is not None and not alone.rose


def test_a_rising_training_loss_is_told_from_noise() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.05, 600).astype(np.float32)
    falling = np.linspace(0.5, 0.2, 600) + noise
    assert rising_since(falling.astype(np.float32)) is None
    turning = np.r_[np.linspace(0.5, 0.2, 300), np.linspace(0.2, 0.4, 300)] + noise
    assert rising_since(turning.astype(np.float32)) in (300, 400)
    assert rising_since(falling[:150].astype(np.float32)) is None
