"""Every command of the runbook is one that the installed programs take, with all its options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from cyclopts import CycloptsError
from infra_files import INFRA, REPOSITORY, SERVICES_OF_COMPOSE
from prefect.cli._app import _app as prefect_app

from deployments.cli import main as _main  # noqa: F401 - it adds bootstrap to the commands
from flows.cli import app as diffmining_app

TEXT = (INFRA / "RUNBOOK.md").read_text()
PROGRAMS = {"prefect": prefect_app, "diffmining": diffmining_app}


def lines() -> Iterator[str]:
    """The lines of all code blocks, continued ones joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip()


def commands() -> Iterator[list[str]]:
    """The words of each command of ours or Prefect's, also of those started in a container.

    Those in the text stand in backticks.
    """
    inline = re.findall(r"`((?:prefect|diffmining) [^`]+)`", TEXT.replace("\n  ", " "))
    for line in [*lines(), *(text.replace("\n", " ") for text in inline)]:
        words = shlex.split(line, comments=True)
        if words and words[0] in PROGRAMS:
            yield words
        elif words[:4] == ["docker", "compose", "run", "--rm"] and words[5:]:
            assert words[4] in SERVICES_OF_COMPOSE
            yield words[5:]


COMMANDS = list(commands())


def test_there_are_many() -> None:
    assert len(COMMANDS) > 40
    assert {words[0] for words in COMMANDS} == set(PROGRAMS)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_exists_with_its_options(words: list[str]) -> None:
    program: Any = PROGRAMS[words[0]]
    words = [word.replace("FLOW_RUN_ID", str(uuid4())) for word in words]
    if words == ["prefect", "flow-run", "cancel"]:  # named in a sentence
        words.append(str(uuid4()))
    try:
        program.parse_args(words[1:], exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(f"{' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "prefect work-pool stop gpu",
        "prefect flow-run ls --status Late",
        "diffmining gc s3://x --remove",
        "diffmining bootstrap x y",
    ],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    words = wrong.split()
    with pytest.raises(CycloptsError):
        PROGRAMS[words[0]].parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_files_and_parts_it_names_are_there() -> None:
    for path in set(re.findall(r"infra/[a-z0-9/.-]+[a-z]", TEXT)):
        if not path.startswith("infra/secrets"):
            assert (REPOSITORY / path).exists(), path
    for line in lines():
        words = line.split()
        if words[:3] in (["docker", "compose", "stop"], ["docker", "compose", "exec"]):
            named = [word for word in words[3:] if word in SERVICES_OF_COMPOSE]
            assert named, line
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(lines()), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
