"""Texts for browsers, logs and published pages, without the folders of this machine."""

from __future__ import annotations

import re

_PART = r"[^/\s'\"<>|]+"
_ABSOLUTE = re.compile(rf"(?:file://|(?<![\w:/.~*-]))(?:/{_PART})*/(?P<name>{_PART})/?")
"""An absolute path, as far as it has no blanks."""


def without_folders(text: str) -> str:
    """The text with each absolute path cut to its last name; addresses stay as they are.

    >>> without_folders("/home/ada/mined/index.html is missing; see https://a.example/b/c")
    'index.html is missing; see https://a.example/b/c'
    """
    return _ABSOLUTE.sub(r"\g<name>", text)
