"""The pair of prompts that typicality compares: one that names the label, one that does not."""

from __future__ import annotations

from dataclasses import dataclass

from diffmining_core.errors import InputError


@dataclass(frozen=True)
class PromptTemplate:
    """Prompts with (`conditioned`) and without (`null`) the label.

    The same pair serves finetuning, typicality and DIFT; the released research code mixed several
    by mistake.
    """

    conditioned: str = "An image of {label}."
    null: str = ""

    def __post_init__(self) -> None:
        if "{label}" not in self.conditioned:
            raise InputError(
                f"The prompt must hold {{label}} where the label's name goes, "
                f"but is {self.conditioned!r}; write for example 'An image of {{label}}.'"
            )

    def of(self, label: str) -> str:
        """The conditioned prompt of one label, its underscores read as spaces."""
        return self.conditioned.replace("{label}", label.replace("_", " "))
