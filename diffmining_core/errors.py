"""The one error that is the user's to mend."""

from __future__ import annotations

from diffmining_core.secrets import without_secrets


class InputError(Exception):
    """What a user gave cannot be used.

    The message is one sentence that says what was expected, what came and what to do; the command
    line prints it alone, without a traceback, and exits with status 2. It never holds a secret.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))


class ImageError(InputError):
    """An image cannot be used; the message says why, and the work goes on without it."""


class UnreadableError(ImageError):
    """The bytes of one image cannot be read, though its storage works."""
