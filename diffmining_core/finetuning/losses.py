"""How the losses went: of every step, by timestep, and on held-out images beside trained ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from diffmining_core.finetuning.options import FinetuneOptions

BINS = 10
"""Equal parts of the timesteps, by which losses are told apart: those of much noise are small."""

BIN_ROWS = 50
"""Stretches of the training by which the losses of its steps are shown by timestep."""

RISE_WINDOW = 100
"""Steps over which the training loss is averaged before two averages are compared."""

STANDARD_ERRORS = 4.0
"""From how many standard errors a rise is no chance."""

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """The loss after `step` steps under noise and timesteps that are always the same.

    held_out, seen: float32 [images, BINS], on images never trained on and on trained ones.
    """

    step: int
    held_out: Floats
    seen: Floats


@dataclass
class History:
    """What was lost at every step: the mean, and its sum and count by timestep."""

    losses: Floats
    bin_sums: Floats
    bin_counts: Floats
    evaluations: list[Evaluation] = field(default_factory=list)

    @classmethod
    def of(cls, steps: int) -> History:
        """Room for so many steps."""
        empty = np.zeros((steps, BINS), np.float32)
        return cls(np.zeros(steps, np.float32), empty, empty.copy())

    def note(self, step: int, losses: Floats, bins: npt.NDArray[np.int64]) -> float:
        """Take in the loss and the bin of each image of a step; returns their mean."""
        self.losses[step] = losses.mean()
        self.bin_sums[step] = np.bincount(bins, losses, BINS)
        self.bin_counts[step] = np.bincount(bins, minlength=BINS)
        return float(self.losses[step])

    def by_timestep(self, steps: slice) -> list[float | None]:
        """Mean loss of some steps in each bin; None where no timestep fell."""
        sums, counts = self.bin_sums[steps].sum(0), self.bin_counts[steps].sum(0)
        return [float(s / n) if n else None for s, n in zip(sums, counts, strict=True)]

    def to_arrays(self, done: int) -> dict[str, npt.NDArray[Any]]:
        """The first `done` steps, for a checkpoint."""
        kept = [evaluation for evaluation in self.evaluations if evaluation.step <= done]
        images = kept[0].held_out.shape[0] if kept else 0
        shape = (-1, images, BINS) if kept else (0, 0, BINS)
        return {
            "losses": self.losses[:done],
            "bin_sums": self.bin_sums[:done],
            "bin_counts": self.bin_counts[:done],
            "evaluated": np.array([evaluation.step for evaluation in kept], np.int64),
            "held_out": np.array([e.held_out for e in kept], np.float32).reshape(shape),
            "seen": np.array([e.seen for e in kept], np.float32).reshape(shape),
        }

    def restore(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Take in what `to_arrays` gave."""
        done = len(arrays["losses"])
        self.losses[:done] = arrays["losses"]
        self.bin_sums[:done] = arrays["bin_sums"]
        self.bin_counts[:done] = arrays["bin_counts"]
        columns = (arrays[name] for name in ("evaluated", "held_out", "seen"))
        self.evaluations = [
            Evaluation(int(step), held_out, seen)
            for step, held_out, seen in zip(*columns, strict=True)
        ]

    def as_json(self, options: FinetuneOptions) -> dict[str, Any]:
        """Columns for `losses.json`; a bin that no timestep fell into is null.

        `bins` has one row for each stretch of steps, up to and with `step`.
        """
        ends = np.unique(np.linspace(0, len(self.losses), BIN_ROWS + 1).round().astype(int))
        rows = [self.by_timestep(slice(*pair)) for pair in pairwise(ends)]
        steps = range(len(self.losses))
        return {
            "step": list(steps),
            "loss": _rounded(self.losses),
            "learning_rate": [float(f"{options.learning_rate_at(step):.6g}") for step in steps],
            "bins": {"step": ends[1:].tolist(), "loss": _rounded(rows)},
            "held_out": {
                "step": [evaluation.step for evaluation in self.evaluations],
                "loss": _rounded([e.held_out.mean() for e in self.evaluations]),
                "seen": _rounded([e.seen.mean() for e in self.evaluations]),
                "bins": _rounded([e.held_out.mean(0) for e in self.evaluations]),
                "seen_bins": _rounded([e.seen.mean(0) for e in self.evaluations]),
            },
        }


@dataclass(frozen=True)
class HeldOut:
    """Where the held-out loss was least and whether it has risen since.

    rose: by more than chance, told from the same images under the same noise.
    """

    best_step: int
    least: float
    end: float
    rose: bool


def held_out_summary(evaluations: Sequence[Evaluation]) -> HeldOut | None:
    """What the held-out losses say of overfitting; None where none were measured."""
    if not evaluations:
        return None
    best = min(evaluations, key=lambda evaluation: float(evaluation.held_out.mean()))
    last = evaluations[-1]
    rise = (last.held_out - best.held_out).mean(1, dtype=np.float64)
    error = rise.std(ddof=1) / len(rise) ** 0.5 if len(rise) > 1 else np.inf
    return HeldOut(
        best_step=best.step,
        least=round(float(best.held_out.mean()), 6),
        end=round(float(last.held_out.mean()), 6),
        rose=bool(rise.mean() > STANDARD_ERRORS * error),
    )


def rising_since(losses: Floats) -> int | None:
    """The step since which the training loss is above its least by more than chance, or None."""
    windows = len(losses) // RISE_WINDOW
    if windows < 2:
        return None
    parts = losses[: windows * RISE_WINDOW].astype(np.float64).reshape(windows, RISE_WINDOW)
    least = int(parts.mean(1).argmin())
    errors = parts[[least, -1]].var(1, ddof=1).sum() / RISE_WINDOW
    rise = parts[-1].mean() - parts[least].mean()
    return (least + 1) * RISE_WINDOW if rise > STANDARD_ERRORS * errors**0.5 else None


def _rounded(values: Any) -> Any:
    """Six decimals; None for what was not measured."""
    rounded = np.asarray(values, np.float64).round(6)  # None becomes NaN
    whole = rounded.astype(object)
    whole[np.isnan(rounded)] = None
    return whole.tolist()
