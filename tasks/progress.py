"""Progress with rate and time left, in the terminal and in the Prefect UI."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from tqdm import tqdm

SECONDS_BETWEEN_UPDATES = 3.0


class Progress:
    """Counts work done, in a terminal bar and a UI artifact that it keeps up to date."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        # On a terminal the bar moves; in a log file a line every half minute is enough.
        interval = 0.5 if sys.stderr.isatty() else 30
        self.bar = tqdm(total=total, desc=name, unit=f" {unit}", mininterval=interval, leave=True)
        self.artifact: UUID | None = None
        self.updated = time.monotonic()
        if TaskRunContext.get() is not None:
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

    def advance(self, count: int = 1) -> None:
        """Note `count` more pieces of work."""
        self.bar.update(count)
        if time.monotonic() - self.updated > SECONDS_BETWEEN_UPDATES:
            self._publish()

    def note(self, text: str) -> None:
        """Show a short figure beside the bar, such as the current loss."""
        self.bar.set_postfix_str(text, refresh=False)

    def _publish(self) -> None:
        if self.artifact is None:
            return
        self.updated = time.monotonic()
        done, total = self.bar.n, max(self.bar.total, 1)
        update_progress_artifact(
            self.artifact, progress=100 * done / total, description=self.bar.__str__()
        )
