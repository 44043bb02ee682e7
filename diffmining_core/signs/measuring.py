"""Is there anything in the maps? Typicality against its noise and against the loss it is part of.

In: the moments of each label's maps. Out: signs of noise and of conditioning too weak to matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from diffmining_core.signs.moments import LabelMoments
from diffmining_core.signs.sign import Sign, percent

ERROR_GROWTH = 3.0
"""Variance of a patch's error over what independent positions would give it.

Neighbouring positions err together, as they share timesteps and the UNet's field of view. Repeating
the measurement of drawn scenes with 16 seeds gave 2.1 for patches of 9 positions and 2.8 for 36.
"""

LEAST_RELIABILITY = 0.5
"""Below it, noise makes more of the difference between two patches than the images do."""
WANTED_RELIABILITY = 0.8

LEAST_STRENGTH = 1e-3
"""Of typicality against the loss: at it, the rounding of bfloat16 (2⁻⁹) is of typicality's size."""

FEW_PATCHES, FEW_IMAGES = 20, 5
"""With fewer, neither a variance nor a share says anything."""


def reliability(moments: LabelMoments, side: int) -> float:
    """Share of the variance between patches of side × side positions that is not noise.

    1 - E[SE²] · growth / side² / Var(T of patches). The standard errors cover the draws of one map;
    as all images of a shape meet the same draws, they do not shrink with the number of images.
    """
    positions = side * side
    noise = moments.error_squares.mean * min(ERROR_GROWTH, positions) / positions
    return 1 - noise / moments.patches.variance


def strength(moments: LabelMoments) -> float:
    """Root mean square of typicality, less its noise, as a share of the loss without the label."""
    signal = max(moments.positions.mean_square - moments.error_squares.mean, 0.0)
    return math.sqrt(signal) / moments.null_loss.mean


def noise_signs(labels: Mapping[str, LabelMoments], side: int, draws: int) -> Iterator[Sign]:
    """The labels whose patches rank by noise."""
    for label, moments in labels.items():
        if moments.patches.count < FEW_PATCHES or moments.patches.variance == 0:
            continue
        share = reliability(moments, side)
        if share < LEAST_RELIABILITY:
            yield Sign(
                name="noise",
                label=label,
                severity="warning",
                what="Typicality cannot be told from noise.",
                evidence=f"Of the variance between patches, about {percent(min(1 - share, 1))} is "
                f"the noise of {draws} draws.",
                advice=_more_draws(share, draws),
            )


def _more_draws(share: float, draws: int) -> str:
    if share < 0.05:
        return (
            "More draws alone will not bring out what is hardly there: finetune longer "
            "(--finetune-steps), then raise --draws."
        )
    # The noise's variance falls with the draws, the images' own stays.
    wanted = WANTED_RELIABILITY / (1 - WANTED_RELIABILITY)
    needed = draws * (1 - share) / share * wanted
    ten = 10 * math.ceil(needed / 10)
    return f"Raise --draws to {ten}, or finetune longer (--finetune-steps)."


def weakness_signs(labels: Mapping[str, LabelMoments], finetuned: bool) -> Iterator[Sign]:
    """The labels that the model hardly heeds, or that mislead it."""
    advice = (
        "Finetune longer (--finetune-steps), and see that the prompts say what is in the images."
        if finetuned
        else "This model does not know these labels: finetune it on them (--finetune-steps)."
    )
    for label, moments in labels.items():
        if moments.images < FEW_IMAGES or not moments.null_loss.mean > 0:
            continue
        share, relative = moments.positive / moments.images, strength(moments)
        # As often as a coin, within one standard error of the coin.
        coin = 0.5 + 0.5 / math.sqrt(moments.images)
        if relative < LEAST_STRENGTH:
            evidence = (
                f"Knowing the label changes the loss at a position by {100 * relative:.2g} % of it."
            )
        elif share <= coin:
            evidence = (
                f"Summed over an image, typicality is positive for {moments.positive} of "
                f"{moments.images} images, no more often than by chance."
            )
        else:
            continue
        yield Sign(
            name="weak",
            label=label,
            severity="warning",
            what="Knowing the label hardly helps the model.",
            evidence=evidence,
            advice=advice,
        )
