"""What makes the command pleasant: JSON for scripts, examples, completion, colours, statuses."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, REPOSITORY, diffmining, mine_words
from cyclopts import App

from deployments.cli import app
from flows.parameters import MineParameters

Make = Callable[..., MineParameters]
FirstRun = tuple[Path, dict[str, Any], int]

SETTERS = ("--help", "-h", "--version", "--install-completion")


def commands(of: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    """Every command below `of`, groups too, by the words that call it."""
    for name in of:
        if name not in SETTERS:
            yield (*path, name), of[name]
            yield from commands(of[name], (*path, name))


ALL = dict(commands(app))
GROUPS = (("study",), ("storage",))


def examples(of: App) -> list[str]:
    lines = str(of.help_epilogue).splitlines()
    return [line.strip() for line in lines if line.startswith("    ")]


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_ends_with_commands_that_the_parser_takes(path: tuple[str, ...]) -> None:
    found = examples(ALL[path])
    assert found
    for example in found:
        program, *words = shlex.split(example)
        assert program == "diffmining"
        assert tuple(words[: len(path)]) == path
        app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_help_of_all_names_the_statuses() -> None:
    said = str(app.help_epilogue)
    assert [word in said for word in ("0,", "1,", "2,", "130,")] == [True] * 4


@pytest.mark.parametrize("path", [path for path in ALL if path not in GROUPS], ids=" ".join)
def test_every_command_that_finds_something_says_it_as_json(path: tuple[str, ...]) -> None:
    options = [name for one in ALL[path].assemble_argument_collection() for name in one.names]
    assert ("--json" in options) == (path != ("serve",))


@pytest.mark.usefixtures("prefect_api")
def test_a_run_with_json_prints_its_summary_and_nothing_else(root: Path, parameters: Make) -> None:
    words = mine_words(parameters(root))
    ended = diffmining(*words, "--json")
    assert ended.returncode == 0, ended.stderr
    summary, kept = json.loads(ended.stdout), json.loads((root / "summary.json").read_text())
    assert summary.keys() == kept.keys()
    assert (summary["report"], summary["unet_forwards"]) == (kept["report"], 0)
    assert ended.stdout.count("\n") == 1
    assert "Stage report" in ended.stderr, "Prefect's logs"


def test_a_dry_run_says_its_numbers_as_json(
    dataset: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--dataset", str(dataset), "--root", str(tmp_path / "root"), "--per-label", "2"]
    app(["translate", "--dry-run", "--json", *words], result_action="return_value")
    told = json.loads(capfd.readouterr().out)
    assert told["labels"] == 4
    assert told["images redrawn"] == 8


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_knows_the_commands(shell: Any, tmp_path: Path) -> None:
    script = tmp_path / "script"
    ended = diffmining("--install-completion", "--shell", shell, "--output", str(script))
    assert ended.returncode == 0, ended.stderr
    text = script.read_text()
    for word in ("mine", "bootstrap", "finetune-steps", "patch-sizes"):
        assert word in text


def test_bash_completes_commands_options_and_choices(tmp_path: Path) -> None:
    script = tmp_path / "diffmining"
    script.write_text(app.generate_completion(shell="bash"))

    def completed(*words: str) -> set[str]:
        program = (
            f"source {script}; COMP_WORDS=(diffmining {shlex.join(words)}); COMP_CWORD={len(words)}"
            '; _diffmining; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
        return {line.strip() for line in ended.stdout.splitlines()}

    assert completed("mi") == {"mine"}
    assert completed("mine", "--finetune-") == {"--finetune-steps", "--finetune-batch"}
    assert completed("mine", "--mode", "re") == {"resume", "recompute"}
    assert "timesteps" in completed("study", "t")


def on_a_terminal(*words: str, **changes: str) -> str:
    """All that the command prints to a terminal."""
    ours, its = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=REPOSITORY,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "100", **changes},
        stdin=its,
        stdout=its,
        stderr=its,
    )
    os.close(its)
    said = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # it has ended, and with it the terminal's other side
            break
        if not block:
            break
        said += block
    os.close(ours)
    process.wait(timeout=60)
    return said.decode()


@pytest.mark.usefixtures("prefect_api")
def test_colours_are_there_on_a_terminal_unless_no_color_is_set(
    root: Path, parameters: Make
) -> None:
    assert "\x1b[" in on_a_terminal("--help")
    assert "\x1b" not in on_a_terminal("--help", NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("verify", str(root), NO_COLOR="1")
    assert "\x1b" not in on_a_terminal("mine", "--draws", "0", NO_COLOR="1")
    words = mine_words(parameters(root, k=1))
    said = on_a_terminal(*words, NO_COLOR="1")
    assert "clusters" in said
    assert "Open " in said
    assert "\x1b" not in said


def test_into_a_pipe_nothing_is_coloured() -> None:
    assert "\x1b" not in diffmining("mine", "--help").stdout


@pytest.mark.usefixtures("prefect_api")
def test_ctrl_c_is_one_sentence_and_keeps_what_is_finished(
    parameters: Make, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    words = mine_words(parameters(root, draws=1000))
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(root.glob("manifests/finetune/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last == (
        "diffmining: interrupted; what is finished is kept, and the same command goes on from there"
    )
    assert out == ""
    assert list(root.glob("manifests/finetune/*.json"))
