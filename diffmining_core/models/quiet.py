"""Keep diffusers and transformers from printing while they load weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import diffusers
import transformers


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without their progress bars, and without warnings of weights and settings not needed here."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    with ExitStack() as restored:
        for library in (diffusers.utils.logging, transformers.utils.logging):
            restored.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        yield
