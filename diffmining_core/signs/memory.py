"""Did the model learn the images by heart? Losses and typicality of images kept out of training.

In: losses by step, and the moments of maps with held-out images apart. Out: signs of memorising.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from diffmining_core.signs.moments import LabelMoments
from diffmining_core.signs.sign import Sign, percent

LEAST_RISE = 0.05
"""Of the held-out loss over its least, well above what one evaluation differs from the next."""

LEAST_HELD_OUT = 8
HELD_OUT_SHARE = 0.5
"""Held-out images show less than this share of the typicality of images trained on."""
STANDARD_ERRORS = 4.0
"""Beyond which the difference of the two is no accident of which images were kept out."""

WHAT = "The model has learned its training images by heart."


def loss_signs(
    steps: Sequence[int], held_out: Sequence[float], seen: Sequence[float]
) -> Iterator[Sign]:
    """A held-out loss that has risen from its least while that of trained images went on falling.

    held_out and seen: losses after `steps` steps, all under the same noise and timesteps.
    """
    if len(steps) < 3:
        return
    best = min(range(len(steps)), key=lambda at: held_out[at])
    rise = held_out[-1] / held_out[best] - 1
    if rise >= LEAST_RISE and seen[-1] < seen[best]:
        yield Sign(
            name="memorised",
            label=None,
            severity="warning",
            what=WHAT,
            evidence=f"The loss on held-out images was least after step {steps[best]:,} "
            f"({held_out[best]:.3g}) and is {percent(rise)} higher after step {steps[-1]:,}, while "
            f"that on images it was trained on fell from {seen[best]:.3g} to {seen[-1]:.3g}.",
            advice=_advice(steps[best]),
        )


def typicality_signs(
    labels: Mapping[str, LabelMoments], best_step: int | None = None
) -> Iterator[Sign]:
    """Typicality of held-out images far below that of the images trained on.

    Labels are compared each with itself and then weighed by their held-out images.
    """
    compared = [m for m in labels.values() if m.held_out.count >= 2 and m.trained.count >= 2]
    weights = np.array([m.held_out.count for m in compared], np.float64)
    if weights.sum() < LEAST_HELD_OUT:
        return
    weights /= weights.sum()
    trained = float(weights @ [m.trained.mean for m in compared])
    held_out = float(weights @ [m.held_out.mean for m in compared])
    error = math.sqrt(sum(w**2 * _error_square(m) for w, m in zip(weights, compared, strict=True)))
    if trained - held_out > STANDARD_ERRORS * error and held_out < HELD_OUT_SHARE * trained:
        images = sum(m.held_out.count for m in compared)
        yield Sign(
            name="memorised",
            label=None,
            severity="warning",
            what=WHAT,
            evidence=f"The mean typicality of {images} held-out images is {held_out:.2g}, that of "
            f"the images it was trained on {trained:.2g}.",
            advice=_advice(best_step),
        )


def _error_square(moments: LabelMoments) -> float:
    return (
        moments.trained.variance / moments.trained.count
        + moments.held_out.variance / moments.held_out.count
    )


def _advice(best_step: int | None) -> str:
    fewer = f"Finetune for about {best_step:,} steps" if best_step else "Finetune for fewer steps"
    return f"{fewer} (--finetune-steps), add images, or train a LoRA (--lora-rank 16)."
