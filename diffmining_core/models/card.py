"""The model card that goes with a finetuned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


def model_card(
    base: str,
    options: Mapping[str, Any],
    images_per_label: Mapping[str, int],
    losses: npt.NDArray[np.float32],
) -> str:
    """Markdown: what the model is, what made it, and how its loss fell."""
    tenth = max(1, len(losses) // 10)
    lines = [
        "---",
        "library_name: diffusers",
        f"base_model: {base}",
        "tags: [diffmining, stable-diffusion]",
        "---",
        "",
        "# Finetuned for diffmining",
        "",
        f"The UNet of `{base}`, finetuned on {sum(images_per_label.values())} images of "
        f"{len(images_per_label)} labels. It measures what is typical of a label; it is not meant "
        "for making pictures.",
        "",
        f"Loss: {losses[:tenth].mean():.4f} over the first {tenth} steps, "
        f"{losses[-tenth:].mean():.4f} over the last {tenth}.",
        "",
        "| option | value |",
        "|---|---|",
        *(f"| {name} | {_code(value)} |" for name, value in options.items()),
        "",
        "| label | images |",
        "|---|---|",
        *(f"| {_cell(label)} | {count} |" for label, count in sorted(images_per_label.items())),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _code(value: Any) -> str:
    return "`" + repr(value).replace("|", "\\|") + "`"
