"""Every command of the documentation is run, or is one that its program takes."""

from __future__ import annotations

import ast
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from uuid import UUID

import pytest
from command_table import (
    IN_PLACE_OF,
    NOT_RUN,
    RUN_BY,
    SMALL,
    WORDS_IN_PLACE_OF,
)
from cyclopts import App, CycloptsError
from written_pages import REPOSITORY, SHELL, Command, Page, blocks, code_spans, commands, pages

from deployments.cli import app as _with_bootstrap  # noqa: F401 - it adds a command
from diffmining_core.images.street_scenes import write_dataset
from flows import demo
from flows.cli import app
from flows.parameters import MineParameters

GENERATED = "docs/reference/"
"""Pages whose examples are those of --help: they are parsed, and named below, but not run again."""
LANGUAGES = {SHELL, "json", "pycon", "python", "text", "toml"}
INSIDE_A_CONTAINER = ("docker", "compose", "run", "--rm")
COMMANDS = [command for page in pages() for command in commands(page)]
RUNBOOK = Page("infra/RUNBOOK.md")
PLACEHOLDERS = {"FLOW_RUN_ID": str(UUID(int=1))}


def entry(words: tuple[str, ...], table: Mapping[str, str]) -> str | None:
    """The name in a table that fits most of the first words of a command."""
    line = " ".join(words)
    fitting = [name for name in table if line == name or line.startswith(f"{name} ")]
    return max(fitting, key=len, default=None)


def where(words: tuple[str, ...]) -> str | None:
    """The name under which a table tells of a command; None if it is run here, or unknown."""
    names = filter(None, (entry(words, RUN_BY), entry(words, NOT_RUN)))
    return max(names, key=len, default=None)


RUN_HERE = [
    command
    for command in COMMANDS
    if command.words[0] == "diffmining"
    and where(command.words) is None
    and not command.page.startswith(GENERATED)
]


def parsed_words(command: Command) -> tuple[str, ...]:
    """The words that a parser knows: those of the program in a container where there is one."""
    inner = command.words[5:] if command.words[:4] == INSIDE_A_CONTAINER else ()
    return tuple(PLACEHOLDERS.get(word, word) for word in inner or command.words)


def named_in_the_runbook() -> Iterator[Command]:
    """The commands that stand in its text, each as it is typed."""
    for span in code_spans(RUNBOOK):
        if span.startswith(("diffmining ", "prefect ")):
            an_id = [PLACEHOLDERS["FLOW_RUN_ID"]] if span == "prefect flow-run cancel" else []
            yield Command(RUNBOOK.path, (*span.split(), *an_id))


PARSED = {
    parsed_words(command): command
    for command in [*COMMANDS, *named_in_the_runbook()]
    if parsed_words(command)[0] in ("diffmining", "prefect")
}


def parser(program: str) -> App:
    """The command line of a program."""
    if program == "diffmining":
        return app
    from prefect.cli._app import _app

    return _app


def test_there_are_many() -> None:
    assert len(COMMANDS) > 150
    assert len(RUN_HERE) > 15


def test_every_block_says_what_it_is_in() -> None:
    wrong = [
        f"{page.path}: ```{block.language} {block.text.splitlines()[0]}"
        for page in pages()
        for block in blocks(page)
        if block.language not in LANGUAGES
    ]
    assert wrong == [], f"after ``` should be one of {', '.join(sorted(LANGUAGES))}"


def test_every_command_is_run_here_or_a_table_says_where_or_why_not() -> None:
    unknown = [
        f"{command.page}: {command.line}"
        for command in COMMANDS
        if command.words[0] != "diffmining" and where(command.words) is None
    ]
    assert unknown == [], "say in tests/docs/command_table.py which test runs it, or why none does"


def test_the_tables_name_no_command_that_is_gone() -> None:
    used = {where(command.words) for command in COMMANDS}
    assert set(RUN_BY) | set(NOT_RUN) <= used


@pytest.mark.parametrize("test", sorted(set(RUN_BY.values())))
def test_a_test_that_is_named_is_there(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("words", PARSED, ids=" ".join)
def test_a_command_exists_with_its_options(words: tuple[str, ...]) -> None:
    try:
        parser(words[0]).parse_args(list(words[1:]), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        pytest.fail(f"{PARSED[words].page}: {' '.join(words)}: {error}")


@pytest.mark.parametrize(
    "wrong",
    [
        "prefect work-pool stop gpu",
        "prefect flow-run ls --status Late",
        "diffmining gc s3://x --remove",
        "diffmining mine --dataset photos --root mined --drawz 3",
    ],
)
def test_a_command_that_does_not_exist_is_found(wrong: str) -> None:
    program, *words = wrong.split()
    with pytest.raises(CycloptsError):
        parser(program).parse_args(words, exit_on_error=False, print_error=False)


def options_of(command: App) -> set[str]:
    """The names of all options of a command and of those below it."""
    own = {name for name in command if name.startswith("--")}
    if command.default_command is not None:
        own |= {
            name for argument in command.assemble_argument_collection() for name in argument.names
        }
    return own.union(*(options_of(command[name]) for name in command if name[0] != "-"))


def spans() -> Iterator[tuple[str, str]]:
    """Page and text of what stands in backticks and is a command, or an option, of ours."""
    for page in pages():
        for span in code_spans(page):
            if re.match(r"--[a-z]|diffmining ", span) and not page.path.startswith("infra/"):
                yield page.path, span


def test_options_that_the_text_names_are_there() -> None:
    ours = options_of(app)
    others = {"--limit", "--kills", "--per-run", "--images", "--version"}
    unknown = [
        f"{page}: {span}"
        for page, span in spans()
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)
        if option not in ours | others
    ]
    assert unknown == []


def test_commands_that_the_text_names_are_there() -> None:
    unknown = []
    for page, span in spans():
        words = span.split()[1:] if span.startswith("diffmining ") else []
        if words and words[0].isalpha() and words[0].islower():
            chain, _, _ = app.parse_commands(words)
            if not chain:
                unknown.append(f"{page}: {span}")
    assert unknown == []


# --- those that are run here ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a few drawn scenes as `photos`, in which all commands run in their order."""
    folder = tmp_path_factory.mktemp("docs")
    write_dataset(folder / "photos", images_per_country=3, seed=42)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def made_small(words: tuple[str, ...]) -> list[str]:
    """A command with the stand-ins and small numbers of the tables."""
    _, command, _ = app.parse_commands(list(words[1:]))
    known = {
        name for argument in command[-1].assemble_argument_collection() for name in argument.names
    }
    small = {option: value for option, value in SMALL.items() if option in known}
    made: list[str] = []
    rest = iter(WORDS_IN_PLACE_OF.get(word, word) for word in words[1:])
    for word in rest:
        if word in IN_PLACE_OF:
            next(rest)
            made += [word, IN_PLACE_OF[word]]
        elif word in small:
            next(rest)
        else:
            made.append(word)
    return [*made, *(word for pair in small.items() for word in pair)]


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("command", RUN_HERE, ids=lambda command: f"{command.page}: {command.line}")
def test_a_command_runs(command: Command, place: Path) -> None:
    # Not with capsys: Prefect's log would go on writing to what it closes.
    with redirect_stdout(io.StringIO()) as said:
        try:
            app(made_small(command.words), exit_on_error=False, result_action="return_value")
        except SystemExit as ended:
            assert not ended.code, said.getvalue()
    assert said.getvalue()


@pytest.mark.usefixtures("prefect_api")
def test_the_demo_runs_as_make_starts_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the scenes that are there, with the small numbers; all else is the demo's."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    assert "\ndemo: $(INSTALLED)\n\t$(BIN)/diffmining demo\n" in makefile
    small = {option.removeprefix("--").replace("-", "_"): value for option, value in SMALL.items()}
    whole = demo.demo_parameters

    def small_parameters(folder: Path) -> MineParameters:
        return MineParameters(**{**whole(folder).model_dump(), **small})

    monkeypatch.setattr(demo, "IMAGES_PER_COUNTRY", 3)
    monkeypatch.setattr(demo, "demo_parameters", small_parameters)
    with redirect_stdout(io.StringIO()) as said:
        app(["demo"], exit_on_error=False, result_action="return_value")
    assert "Truth: typicality against the planted elements" in said.getvalue()
    assert (place / "demo" / "index.html").is_file()
