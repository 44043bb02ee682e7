from __future__ import annotations

import numpy as np
from made_maps import SIDE, hills, made_maps

from diffmining_core.signs.memory import loss_signs, typicality_signs
from diffmining_core.signs.moments import LabelMoments, label_moments

STEPS = [0, 200, 400, 600, 800]


def test_a_rising_held_out_loss_under_a_falling_training_loss() -> None:
    (sign,) = loss_signs(STEPS, [0.3, 0.2, 0.18, 0.2, 0.24], [0.3, 0.2, 0.15, 0.1, 0.05])
    assert (sign.name, sign.label, sign.severity) == ("memorised", None, "warning")
    assert "least after step 400 (0.18) and is 33 % higher after step 800" in sign.evidence
    assert "about 400 steps" in sign.advice


def test_losses_that_fall_together_rise_together_or_hardly_differ_say_nothing() -> None:
    assert list(loss_signs(STEPS, [0.3, 0.2, 0.18, 0.17, 0.17], [0.3, 0.2, 0.15, 0.1, 0.05])) == []
    # Diverged: another fault, of which finetuning itself warns.
    assert list(loss_signs(STEPS, [0.3, 0.2, 0.18, 0.3, 0.5], [0.3, 0.2, 0.15, 0.3, 0.5])) == []
    assert list(loss_signs(STEPS, [0.3, 0.2, 0.18, 0.183, 0.185], [0.3, 0.2, 0.1, 0.1, 0.05])) == []
    assert list(loss_signs([0, 200], [0.1, 0.2], [0.1, 0.05])) == []
    assert list(loss_signs([], [], [])) == []


def moments(held_out_height: float) -> dict[str, LabelMoments]:
    found: dict[str, LabelMoments] = {}
    for seed, label in enumerate(("barn", "tower")):
        heights = np.where(np.arange(30) < 6, held_out_height, 1e-2)
        signal = hills(30, 1.0, seed) * heights[:, None, None]
        kept_out = {f"{label} {i}" for i in range(6)}
        found |= label_moments(made_maps(signal, 1e-3, label=label, seed=seed), SIDE, kept_out)
    return found


def test_typicality_that_held_out_images_do_not_have() -> None:
    (sign,) = typicality_signs(moments(1e-3), 400)
    assert sign.name == "memorised"
    assert "12 held-out images" in sign.evidence
    assert "about 400 steps" in sign.advice
    (sign,) = typicality_signs(moments(-2e-3))
    assert "fewer steps" in sign.advice


def test_typicality_that_held_out_images_have_too() -> None:
    assert list(typicality_signs(moments(1e-2), 400)) == []
    assert list(typicality_signs(moments(8e-3), 400)) == []


def test_without_held_out_images_nothing_is_said() -> None:
    assert list(typicality_signs(label_moments(made_maps(hills(9, 1e-2), 1e-3), SIDE))) == []
