from __future__ import annotations

import numpy as np
import pytest
from made_maps import SIDE, hills, made_maps

from diffmining_core.signs.measuring import noise_signs, reliability, strength, weakness_signs
from diffmining_core.signs.moments import LabelMoments, label_moments

ERROR = 2.6e-3


def moments(error: float, height: float = 1e-2, draws: int = 16) -> LabelMoments:
    return label_moments(made_maps(hills(40, height), error, draws), SIDE)["barn"]


def test_reliability_is_the_share_of_variance_that_is_not_noise() -> None:
    # Positions err independently here, so that noise is a third of what ERROR_GROWTH counts with.
    measured = moments(2e-3)
    noise = 2e-3**2 / 9
    true = 1 - 3 * noise / measured.patches.variance
    assert reliability(measured, SIDE) == pytest.approx(true, abs=0.01)


def test_maps_of_noise_are_said_to_be_noise_and_clear_ones_are_not() -> None:
    noise, clear = moments(5e-3, height=1e-5), moments(1e-3)
    (sign,) = noise_signs({"barn": clear, "tower": noise}, SIDE, 16)
    assert (sign.name, sign.label, sign.severity) == ("noise", "tower", "warning")
    assert "100 % is the noise of 16 draws" in sign.evidence
    assert "finetune longer" in sign.advice


def test_the_draws_advised_are_enough() -> None:
    few = moments(ERROR)
    assert 0.05 < reliability(few, SIDE) < 0.5
    (sign,) = noise_signs({"barn": few}, SIDE, 16)
    draws = int(sign.advice.split("--draws to ")[1].split(",")[0])
    assert draws > 16
    more = moments(ERROR * np.sqrt(16 / draws), draws=draws)
    assert list(noise_signs({"barn": more}, SIDE, draws)) == []
    assert reliability(more, SIDE) > 0.7


def test_strength_leaves_the_noise_out() -> None:
    signal = hills(40, 1e-2)
    rms = np.sqrt((signal**2).mean())
    assert strength(moments(1e-4)) == pytest.approx(rms / 0.2, rel=0.02)
    assert strength(moments(3e-3)) == pytest.approx(rms / 0.2, rel=0.05)


def test_a_label_that_changes_nothing_is_said_to_be_weak() -> None:
    (sign,) = weakness_signs({"barn": moments(1e-6, height=1e-4)}, finetuned=True)
    assert (sign.name, sign.label) == ("weak", "barn")
    assert "--finetune-steps" in sign.advice
    untouched = label_moments(made_maps(np.zeros((9, 8, 8)), 0), SIDE)
    (sign,) = weakness_signs(untouched, finetuned=False)
    assert "0 % of it" in sign.evidence
    assert "does not know these labels" in sign.advice
    assert list(noise_signs(untouched, SIDE, 16)) == []


def test_a_label_that_helps_half_of_its_images_is_said_to_be_weak() -> None:
    signal = hills(40, 1e-2) - np.where(np.arange(40) % 2, 0, 2e-2)[:, None, None]
    (sign,) = weakness_signs(label_moments(made_maps(signal, 1e-4), SIDE), finetuned=True)
    assert "positive for 20 of 40 images" in sign.evidence


def test_a_label_that_helps_is_not() -> None:
    assert list(weakness_signs({"barn": moments(1e-3)}, finetuned=True)) == []


def test_of_very_few_images_nothing_is_said() -> None:
    few = label_moments(made_maps(hills(3, 1e-5)[:, :6, :6], 1e-2), SIDE)
    assert list(noise_signs(few, SIDE, 16)) + list(weakness_signs(few, finetuned=True)) == []
