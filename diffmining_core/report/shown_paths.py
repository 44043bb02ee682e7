"""Texts for browsers, logs and published pages, without the folders of this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

ANOTHER_FOLDER = "another folder"
"""Stands for a path that ends in a slash: its last name is a folder's, often that of a user."""

_START = r"(?:file://|(?<![\w:/.~*-]))"
_BODY = r"[^\s/'\"<>|]"
_ABSOLUTE = re.compile(
    # A folder's name may hold blanks, but a sentence goes on after `:`, `;` or `,` and a blank.
    rf"{_START}/(?={_BODY})(?:{_BODY}(?:{_BODY}|(?<![:;,]) )*(?<![: ])/)*(?P<name>{_BODY}*)"
)
_QUOTED = re.compile(r"(?P<quote>['\"])(?:file://)?/(?P<path>(?:(?!(?P=quote)).)+)(?P=quote)")


def without_folders(text: str, folders: Sequence[str] = ()) -> str:
    """The text with each absolute path cut to its last name; addresses stay as they are.

    folders: that are known beside the user's own: they are found whatever their names hold. What
    stands between an unquoted path and a later slash is cut with it, where it may be a name.

    >>> without_folders("/home/ada/mined/index.html is missing; see https://a.example/b/c")
    'index.html is missing; see https://a.example/b/c'
    >>> without_folders("cannot be read: '/home/ada/my photos/a b.jpg'")
    "cannot be read: 'a b.jpg'"
    """
    home = os.path.expanduser("~")  # noqa: PTH111 - Path's raises where there is no home
    for folder in sorted((*folders, home), key=len, reverse=True):
        if folder.startswith("/") and folder != "/":
            text = re.sub(rf"{_START}{re.escape(folder.rstrip('/'))}(?=/)", "/~", text)
    text = _QUOTED.sub(
        lambda match: f"{match['quote']}{_last(match['path'])}{match['quote']}", text
    )
    return _ABSOLUTE.sub(lambda match: match["name"] or ANOTHER_FOLDER, text)


def _last(path: str) -> str:
    return path.rpartition("/")[2] or ANOTHER_FOLDER
