"""Progress with rate and time left, in the terminal and in the Prefect UI.

It is for people alone: a server that is away for a while neither stops the work nor delays it.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import SettingsContext, TaskRunContext, get_settings_context
from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_UPDATES = 3.0


class Progress:
    """Counts work done, in a terminal bar and a UI artifact that it keeps up to date.

    total: None where nobody knows how much there will be; there is no time left to show then.
    """

    def __init__(self, name: str, total: int | None, unit: str) -> None:
        # On a terminal the bar moves; in a log file a line every half minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30
        self.name = name
        self.text = ""
        self.bar = tqdm(total=total, desc=name, unit=f" {unit}", mininterval=interval)
        self.artifact: UUID | None = None
        self.updated = time.monotonic()
        if TaskRunContext.get() is not None:
            with _told_once():
                self.artifact = cast(UUID, create_progress_artifact(0.0, description=name))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._publish()
        self.bar.close()

    def advance(self, count: int = 1, text: str = "") -> None:
        """Note `count` more pieces of work, and a short figure such as the current loss."""
        self.text = text
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(count)
        if time.monotonic() - self.updated > SECONDS_BETWEEN_UPDATES:
            self._publish()

    def start_at(self, done: int) -> None:
        """Show work that an earlier run has done."""
        self.bar.n = self.bar.initial = done
        self.bar.refresh()

    def _publish(self) -> None:
        if self.artifact is None:
            return
        self.updated = time.monotonic()
        figures = self.bar.format_dict
        n, total, seconds = figures["n"], figures["total"], figures["elapsed"]
        rate = (n - figures["initial"]) / max(seconds, 1e-9)
        words = [
            f"{self.name}: {n}{'' if total is None else f' of {total}'}{figures['unit']}",
            f"{rate:.3g}{figures['unit']} a second",
        ]
        if total is not None:
            left = tqdm.format_interval((total - n) / rate) if rate else "unknown"
            words.append(f"{left} left")
        with _told_once():
            update_progress_artifact(
                self.artifact,
                progress=100 * n / max(total or n, 1),
                description=", ".join([*words, self.text] if self.text else words),
            )


@contextmanager
def _told_once() -> Iterator[None]:
    """What the server does not hear at once is left out: the next update says it too."""
    try:
        # Not temporary_settings, which reads all sources anew: 40 ms, a tenth of a small run.
        now = get_settings_context()
        once = now.settings.client.model_copy(update={"max_retries": 0})
        settings = now.settings.model_copy(update={"client": once})
        with SettingsContext(profile=now.profile, settings=settings):
            yield
    except Exception as error:
        logger.debug("Progress was not told: %r", error)
