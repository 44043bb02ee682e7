"""The committed reference is what its generator makes of the program as it is."""

from __future__ import annotations

import re

import pytest
from written_pages import REPOSITORY

AGAIN = "the program and its reference differ: run `make docs` and commit docs/reference"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY)
        from docs.reference import generate

        # Neither the terminal's width nor its colours enter.
        patch.setenv("COLUMNS", "40")
        patch.setenv("FORCE_COLOR", "1")
        return generate.pages()


@pytest.mark.parametrize("name", ["command-line.md", "python.md"])
def test_a_page_is_as_committed(made: dict[str, str], name: str) -> None:
    committed = (REPOSITORY / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert made[name] == committed, AGAIN


def test_every_command_has_its_section_and_every_option_its_meaning(made: dict[str, str]) -> None:
    text = made["command-line.md"]
    for command in ("mine", "study noise", "storage check", "bootstrap"):
        assert f"\n## diffmining {command}\n" in text
    for line in text.splitlines():
        if line.startswith("| `"):
            assert line.split(" | ")[1].strip(), f"{line} has no description"


def test_every_name_has_its_signature_and_its_words(made: dict[str, str]) -> None:
    sections = made["python.md"].split("\n### ")[1:]
    assert len(sections) > 20
    for section in sections:
        heading, _, rest = section.partition("\n")
        words = re.sub(r"```python.*?```", "", rest, flags=re.DOTALL)
        assert words.strip(), f"{heading} has no docstring"
