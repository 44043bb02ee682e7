"""Counts, by reason, of the rows of a dataset that are not used, with the first names of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypedDict

from diffmining_core.secrets import without_secrets

NAMED = 3
"""Names that are kept per reason."""


class Reason(TypedDict):
    """The number of rows with a reason, and the names of the first few."""

    count: int
    names: list[str]


@dataclass
class Tally:
    """Rows by reason: their number, and the names of the first few.

    counts: by reason. Tallies add up, so that the parts of a dataset may be read in any order.
    """

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, *names: str, count: int = 1) -> None:
        """Count `count` more rows under a reason; names: theirs, as far as they are known."""
        self.counts[reason] += count
        kept = self.names.setdefault(reason, [])
        kept.extend(without_secrets(name) for name in names[: NAMED - len(kept)])

    def update(self, reasons: Mapping[str, Reason]) -> None:
        """Add what another tally holds, as `as_json` has it."""
        for reason, found in reasons.items():
            self.add(reason, *found["names"], count=found["count"])

    def as_json(self) -> dict[str, Reason]:
        """Number and names by reason, the commonest reason first."""
        return {
            reason: Reason(count=count, names=self.names[reason])
            for reason, count in self.counts.most_common()
        }

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Tally:
        """The tally of rows, each with its name and reason."""
        tally = cls()
        for name, reason in rows:
            tally.add(reason, name)
        return tally
