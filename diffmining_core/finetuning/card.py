"""The model card that goes with a finetuned model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffmining_core.finetuning.losses import History, held_out_summary


def model_card(
    base: str,
    options: Mapping[str, Any],
    images_per_label: Mapping[str, int],
    history: History,
) -> str:
    """Markdown: what the model is, what made it, and how its loss fell."""
    losses = history.losses
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
        *_held_out(history),
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


def _held_out(history: History) -> list[str]:
    summary = held_out_summary(history.evaluations)
    if summary is None:
        return []
    images = len(history.evaluations[0].held_out)
    risen = ", having risen by more than chance" if summary.rose else ""
    return [
        "",
        f"Loss on {images} images never trained on: least, {summary.least:.4f}, after "
        f"{summary.best_step} steps; {summary.end:.4f} at the end{risen}.",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _code(value: Any) -> str:
    return "`" + repr(value).replace("|", "\\|") + "`"
