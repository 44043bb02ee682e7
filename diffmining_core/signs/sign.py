"""What a user is told: one sign, in words and with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PictureRows = list[list[NDArray[np.uint8]]]
"""Tiles uint8 [h, w, 3], row by row: the picture that shows a sign."""


@dataclass(frozen=True)
class Sign:
    """One sign of failure. Signs of one name differ in label, evidence and picture alone.

    Attributes:
        name: which sign, a lower-case word or several with hyphens.
        label: the label concerned, None for the whole run.
        severity: "warning" where the results mislead, "note" where they could be better.
        what: what is wrong, a sentence that names no label.
        evidence: the numbers, a sentence.
        advice: what to do, a sentence or several.
        picture: name of the file with the picture that shows it, if it has one.
        about: what the picture shows.
    """

    name: str
    label: str | None
    severity: Literal["warning", "note"]
    what: str
    evidence: str
    advice: str
    picture: str | None = None
    about: str = ""

    def as_text(self) -> str:
        """The whole sign in one line, for a terminal."""
        named = f"{self.label}: " if self.label is not None else ""
        return f"{named}{self.what} {self.evidence} {self.advice}"

    def as_json(self) -> dict[str, Any]:
        """The sign as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Sign:
        """The sign that `as_json` gave."""
        return cls(**stored)


@dataclass(frozen=True)
class Raised:
    """A sign with the tiles of its picture, before they are a file."""

    sign: Sign
    rows: PictureRows

    def with_picture(self, name: str) -> Sign:
        """The sign, its picture being the file `name`."""
        return replace(self.sign, picture=name)


def percent(share: float) -> str:
    """A share in words' precision, such as "37 %"."""
    return f"{100 * share:.0f} %"
