"""The pages of the documentation, and the commands that are written on them."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]
SHELL = "sh"
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.MULTILINE)
ENDS_A_COMMAND = frozenset(";&|\n")
REDIRECTS = frozenset("<>")


@dataclass(frozen=True)
class Page:
    """A page by its path in the repository."""

    path: str

    @property
    def file(self) -> Path:
        """Where it is."""
        return REPOSITORY / self.path

    @property
    def text(self) -> str:
        """All of it."""
        return self.file.read_text(encoding="utf-8")

    @property
    def prose(self) -> str:
        """Without its fenced blocks."""
        return FENCE.sub("", self.text)


class Block(NamedTuple):
    """A fenced block: its language and what is in it."""

    language: str
    text: str


class Command(NamedTuple):
    """A command line, the words of one program and its arguments."""

    page: str
    words: tuple[str, ...]

    @property
    def line(self) -> str:
        """As it is typed."""
        return shlex.join(self.words)


def pages() -> list[Page]:
    """All of them, in the order in which a newcomer reads them."""
    first = ["docs/tutorial.md", "README.md"]
    others = sorted(
        path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.md")
    )
    return [Page(path) for path in dict.fromkeys([*first, *others, "infra/RUNBOOK.md"])]


def blocks(page: Page) -> list[Block]:
    """The fenced blocks of a page."""
    return [Block(found[2], textwrap.dedent(found[3])) for found in FENCE.finditer(page.text)]


def commands(page: Page) -> Iterator[Command]:
    """The commands of a page in their order."""
    for block in blocks(page):
        if block.language == SHELL:
            yield from (Command(page.path, words) for words in commands_in(block.text))


def commands_in(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a piece of shell: comments and redirections gone, variables filled in."""
    variables: dict[str, list[str]] = {}
    for words in simple_commands(text):
        filled = [word for each in words for word in variables.get(each.removeprefix("$"), [each])]
        while filled and (assigned := re.fullmatch(r"([A-Z_]+)=(.*)", filled[0], re.DOTALL)):
            variables[assigned[1]] = assigned[2].split()
            filled.pop(0)
        if filled:
            filled[0] = filled[0].removeprefix(".venv/bin/")
            yield tuple(filled)


def simple_commands(text: str) -> Iterator[list[str]]:
    """The words between one end of a command and the next."""
    bare = COMMENT.sub("", text).replace("\\\n", " ")
    lexer = shlex.shlex(bare, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    tokens = iter(lexer)
    for token in tokens:
        if set(token) <= ENDS_A_COMMAND:
            yield words
            words = []
        elif set(token) <= REDIRECTS:
            next(tokens)
        else:
            words.append(token)
    yield words


def code_spans(page: Page) -> Iterator[str]:
    """What stands in backticks in the text of a page, on one line."""
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", page.prose):
        yield " ".join(span.split())
