from __future__ import annotations

import numpy as np
import numpy.typing as npt

from diffmining_core.finetuning.card import model_card
from diffmining_core.finetuning.losses import Evaluation, History


def history(losses: npt.NDArray[np.float32]) -> History:
    found = History.of(len(losses))
    found.losses[:] = losses
    return found


def test_card_says_what_was_trained_and_how_the_loss_fell() -> None:
    losses = np.r_[np.full(2, 0.5), np.full(16, 9), np.full(2, 0.25)].astype(np.float32)
    card = model_card(
        "tiny", {"steps": 20, "prompt": "A {label}."}, {"b": 3, "a": 4}, history(losses)
    )
    assert card.startswith("---\nlibrary_name: diffusers\nbase_model: tiny\n")
    assert "7 images of 2 labels" in card
    assert "0.5000 over the first 2 steps, 0.2500 over the last 2" in card
    assert "| prompt | `'A {label}.'` |" in card
    assert card.index("| a | 4 |") < card.index("| b | 3 |")


def test_labels_and_options_do_not_break_the_tables() -> None:
    losses = np.ones(1, np.float32)
    card = model_card("tiny", {"prompt": "a|{label}"}, {"x|y\n<script>": 1}, history(losses))
    assert "| x\\|y &lt;script> | 1 |" in card.splitlines()
    assert "| prompt | `'a\\|{label}'` |" in card.splitlines()


def test_card_says_what_was_lost_on_images_held_out() -> None:
    told = history(np.ones(4, np.float32))
    for step, loss in ((0, 0.5), (2, 0.25), (4, 0.75)):
        table = np.full((3, 10), loss, np.float32)
        told.evaluations.append(Evaluation(step, table, table))
    card = model_card("tiny", {}, {"a": 4}, told)
    assert (
        "Loss on 3 images never trained on: least, 0.2500, after 2 steps; 0.7500 at the end, "
        "having risen by more than chance." in card
    )
