from __future__ import annotations

import numpy as np

from diffmining_core.models.card import model_card


def test_card_says_what_was_trained_and_how_the_loss_fell() -> None:
    losses = np.r_[np.full(2, 0.5), np.full(16, 9), np.full(2, 0.25)].astype(np.float32)
    card = model_card("tiny", {"steps": 20, "prompt": "A {label}."}, {"b": 3, "a": 4}, losses)
    assert card.startswith("---\nlibrary_name: diffusers\nbase_model: tiny\n")
    assert "7 images of 2 labels" in card
    assert "0.5000 over the first 2 steps, 0.2500 over the last 2" in card
    assert "| prompt | `'A {label}.'` |" in card
    assert card.index("| a | 4 |") < card.index("| b | 3 |")


def test_labels_and_options_do_not_break_the_tables() -> None:
    losses = np.ones(1, np.float32)
    card = model_card("tiny", {"prompt": "a|{label}"}, {"x|y\n<script>": 1}, losses)
    assert "| x\\|y &lt;script> | 1 |" in card.splitlines()
    assert "| prompt | `'a\\|{label}'` |" in card.splitlines()
