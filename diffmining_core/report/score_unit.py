"""Typicality in a unit that reads well: it is small."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class ScoreUnit:
    """Typicality is small; the page writes it in units of a power of ten."""

    exponent: int

    @classmethod
    def of(cls, values: pa.ChunkedArray) -> ScoreUnit:
        """The power of ten of the largest of the values; ones for what is read well as it is."""
        largest = pc.max(pc.abs(values)).as_py() or 1.0
        exponent = math.floor(math.log10(largest))
        return cls(exponent if exponent < -1 or exponent > 2 else 0)

    def text(self, typicality: float) -> str:
        """The typicality in this unit, signed."""
        return f"{typicality / 10.0**self.exponent:+.2f}".replace("-", "−")

    def size_text(self, difference: float) -> str:
        """A difference of typicalities in this unit, which has no sign."""
        return f"{difference / 10.0**self.exponent:.2f}"

    @property
    def power(self) -> str:
        """The unit itself, such as "10⁻³"; nothing for ones."""
        return f"10{str(self.exponent).translate(_SUPERSCRIPTS)}" if self.exponent else ""

    @property
    def name(self) -> str:
        """The unit behind a number, such as "×10⁻³"; nothing for ones."""
        return f"×{self.power}" if self.exponent else ""
