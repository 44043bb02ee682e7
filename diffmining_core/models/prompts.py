"""The pair of prompts that typicality compares: one that names the label, one that does not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffmining_core.errors import InputError

PROMPT_OPTIONS = frozenset({"prompt", "null_prompt", "detailed_prompt", "detailed_share", "words"})
"""The names under which a template lies among a stage's options."""


@dataclass(frozen=True)
class PromptTemplate:
    """Prompts with (`conditioned`) and without (`null`) the label.

    The same pair serves finetuning, typicality and DIFT; the released research code mixed several
    by mistake. In finetuning `detailed_share` (0 to 1) of all images get the prompt `detailed`,
    which holds {label} and {detail}, those without a detail `conditioned`. `words` says how a
    label is read where that is not its name with underscores as spaces.
    """

    conditioned: str = "An image of {label}."
    null: str = ""
    detailed: str | None = None
    detailed_share: float = 0.0
    words: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if "{label}" not in self.conditioned:
            raise InputError(
                f"The prompt must hold {{label}} where the label's name goes, "
                f"but is {self.conditioned!r}; write for example 'An image of {{label}}.'"
            )
        if self.detailed is not None and not {"{label}", "{detail}"} <= _fields(self.detailed):
            raise InputError(
                f"The detailed prompt must hold {{label}} and {{detail}}, but is "
                f"{self.detailed!r}; write for example 'An image of {{detail}}, {{label}}.'"
            )
        if not 0 <= self.detailed_share <= 1:
            raise InputError(
                f"The share of detailed prompts must lie between 0 and 1, but is "
                f"{self.detailed_share}."
            )
        if self.detailed_share and self.detailed is None:
            raise InputError(
                f"A share of {self.detailed_share} of the images should get the detailed prompt, "
                "but there is none; give one, or leave the share at 0."
            )

    def check_shares(self, null_share: float) -> None:
        """InputError if the null prompt and the detailed one are wanted for more than all images.

        Both are shares of all images that a model is finetuned on.
        """
        if null_share + self.detailed_share > 1:
            raise InputError(
                f"The shares of the null prompt ({null_share}) and of the detailed prompt "
                f"({self.detailed_share}) must add up to 1 at most, for both are of all images; "
                "lower one of them."
            )

    def of(self, *labels: str) -> str:
        """The conditioned prompt of one image's label or labels, which are joined by commas."""
        return _filled(self.conditioned, {"{label}": self._said(labels)})

    def of_detail(self, labels: Sequence[str], detail: str) -> str:
        """The detailed prompt; the conditioned one where the template has no detailed one."""
        if self.detailed is None:
            return self.of(*labels)
        return _filled(self.detailed, {"{label}": self._said(labels), "{detail}": detail})

    def _said(self, labels: Sequence[str]) -> str:
        return ", ".join(self.words.get(label, label.replace("_", " ")) for label in labels)

    def as_options(self) -> dict[str, Any]:
        """The template as JSON among a stage's options; what was not set is left out."""
        options: dict[str, Any] = {"prompt": self.conditioned, "null_prompt": self.null}
        if self.detailed is not None:
            options["detailed_prompt"] = self.detailed
            options["detailed_share"] = self.detailed_share
        if self.words:
            options["words"] = dict(self.words)
        return options

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> PromptTemplate:
        """The template that `as_options` wrote; other options are passed over."""
        return cls(
            options["prompt"],
            options["null_prompt"],
            options.get("detailed_prompt"),
            options.get("detailed_share", 0.0),
            options.get("words", {}),
        )


_FIELD = re.compile(r"\{label\}|\{detail\}")


def _fields(template: str) -> set[str]:
    return set(_FIELD.findall(template))


def _filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields replaced at once: what a value holds is never a field."""
    return _FIELD.sub(lambda found: values.get(found[0], found[0]), template)
