"""Text that others wrote, such as labels and file names, as plain text in other people's markup."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_OPENINGS = re.compile(r"[<\]]")
_JOINERS = "\u200c\u200d"  # which some scripts and emoji are written with


def printable(text: str) -> str:
    """The text without line breaks and control characters, which XML for one has no place for."""
    kept = "".join(letter if letter.isprintable() or letter in _JOINERS else " " for letter in text)
    return " ".join(kept.split())


def one_line(text: str, longest: int = 80) -> str:
    """The text without line breaks and control characters, shortened with "…".

    What is written from right to left ends with it: what comes behind reads as it should.
    """
    line = printable(text)
    if len(line) > longest:
        line = f"{line[: longest - 1]}…"
    return line if line.isascii() else f"\u2068{line}\u2069"


def markdown_text(text: str, longest: int = 80) -> str:
    """For Markdown, in a table too: no punctuation is left that could be markup, HTML or a link.

    With backslashes, which both of Prefect's UIs know; of entities only the newer one does.
    """
    return _PUNCTUATION.sub(r"\\\g<0>", one_line(text, longest))


def cell_text(text: str, longest: int = 80) -> str:
    """For a table artifact, whose cells are plain text in one of Prefect's UIs, Markdown in one.

    An invisible space keeps tags, pictures and links from being any; it is nowhere else.
    """
    return _OPENINGS.sub("\\g<0>\u200b", one_line(text, longest))


def slack_text(text: str, longest: int = 80) -> str:
    """For Slack's plain text, of at most so many characters there.

    Only three characters could mean more than themselves; written otherwise, they are longer.
    """
    for length in range(longest, 0, -1):
        line = one_line(text, length)
        line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        if len(line) <= longest:
            return line
    return ""
