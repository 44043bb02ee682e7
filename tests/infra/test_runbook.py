"""What the runbook names is there; its commands are looked at in `tests/docs`."""

from __future__ import annotations

import re
from collections.abc import Iterator

from infra_files import INFRA, REPOSITORY, SERVICES_OF_COMPOSE

TEXT = (INFRA / "RUNBOOK.md").read_text()


def lines() -> Iterator[str]:
    """The lines of all code blocks, continued ones joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip()


def test_the_files_and_parts_it_names_are_there() -> None:
    for path in set(re.findall(r"infra/[a-z0-9/.-]+[a-z]", TEXT)):
        if not path.startswith("infra/secrets"):
            assert (REPOSITORY / path).exists(), path
    for line in lines():
        words = line.split()
        if words[:4] == ["docker", "compose", "run", "--rm"]:
            assert words[4] in SERVICES_OF_COMPOSE
        if words[:3] in (["docker", "compose", "stop"], ["docker", "compose", "exec"]):
            named = [word for word in words[3:] if word in SERVICES_OF_COMPOSE]
            assert named, line
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(lines()), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
