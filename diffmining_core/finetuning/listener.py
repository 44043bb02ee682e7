"""Who is told how a training goes."""

from __future__ import annotations

from diffmining_core.finetuning.losses import Evaluation, History


class Listener:
    """Each method does nothing unless it is overridden; steps are counted from 0."""

    def started(self, first: int) -> None:
        """The training begins, or goes on, with step `first`."""

    def stepped(self, step: int, history: History, images_per_second: float) -> None:
        """A step is done."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The loss on held-out images has been measured."""

    def previewed(self, step: int, png: bytes) -> None:
        """A preview has been drawn after so many steps."""

    def ended(self) -> None:
        """All steps are done."""
