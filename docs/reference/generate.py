"""Write the reference: every command with its options, and the names of the Python side.

    make docs

Takes the descriptions from where the program itself has them, the help of its commands and the
docstrings of its code, and writes `command-line.md` and `python.md` beside this file. Nothing of
the machine or terminal enters, so that the same code gives the same bytes.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import griffe
from cyclopts import App
from cyclopts.argument import Argument

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
COMMAND = "make docs"
NOTICE = f"<!-- Made by `{COMMAND}`: change what it is made from, and run that. -->"
EXAMPLE = ">>> "
BASES = ("index", "finetune", "typicality", "mine")
"""Commands each of which takes the options of the one before it, and others of one of them."""
LINE = 96
"""Characters of a signature that fits on one line."""

PUBLIC = (
    (
        "Reading what a run made",
        "A mined root as tables, arrays and pictures, also as `diffmining_core.open_results`: "
        "[python.md](../python.md) has more examples.",
        {"results.opened": ("open_results", "MinedResults")},
    ),
    (
        "Taking it elsewhere",
        "What `diffmining export` and `diffmining figures` do: [export.md](../export.md).",
        {
            "results.exports.coco": ("export_coco",),
            "results.exports.csv_tables": ("export_csv",),
            "results.exports.fiftyone": ("export_fiftyone",),
            "results.exports.huggingface": ("export_huggingface",),
            "results.exports.figure_files": ("write_figures",),
            "results.exports.target": ("open_target",),
            "report.layouts": ("Figure",),
        },
    ),
    (
        "Images",
        "",
        {
            "images.pixels": ("load_pixels", "resized_hw", "ImageError"),
            "images.street_scenes.dataset": ("write_dataset",),
        },
    ),
    (
        "Models and prompts",
        "",
        {
            "models.pipelines": ("load_pipeline", "Pipeline"),
            "models.files": ("ModelSource",),
            "models.prompts": ("PromptTemplate",),
        },
    ),
    (
        "Typicality",
        "What it is: [explanation.md](../explanation.md).",
        {
            "typicality.draws": ("draw", "Draws", "sample_posterior"),
            "typicality.estimator": ("typicality", "Estimate"),
            "typicality.shard": ("shard_typicality", "TypicalityOptions"),
        },
    ),
    (
        "Patches",
        "",
        {
            "patches.scoring": (
                "upsample_bilinear",
                "patch_scores",
                "pick_patches",
                "random_patches",
                "shard_patches",
            ),
            "patches.selection": ("TopPatches",),
        },
    ),
    (
        "Features and clusters",
        "",
        {
            "features.dift": ("dift", "patch_features", "image_features"),
            "clusters.kmeans": ("cluster_label", "cluster_selection", "cluster_summary"),
        },
    ),
    (
        "Pictures",
        "",
        {
            "report.overlays": ("label_scale", "overlay", "diverging_colours", "colour_bar"),
        },
    ),
    ("Errors", "", {"errors": ("InputError",)}),
)
"""Heading, words, and the names of each module of `diffmining_core`."""


def main() -> None:
    """Write all pages of the reference."""
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


def pages() -> dict[str, str]:
    """The text of each page by its file name."""
    return {"command-line.md": command_line(), "python.md": python()}


# --- the commands ---------------------------------------------------------------------------------


class Option(NamedTuple):
    """A row of a command's table."""

    name: str
    what: str
    default: str


class Command(NamedTuple):
    """A command with all its options."""

    words: tuple[str, ...]
    usage: str
    about: str
    options: tuple[Option, ...]

    @property
    def title(self) -> str:
        """As it is typed."""
        return " ".join(self.words)

    @property
    def link(self) -> str:
        """To its section."""
        return f"[`{self.title}`](#{'-'.join(self.words)})"


def command_line() -> str:
    """The page of the commands."""
    from deployments.cli import app

    commands = sorted(commands_of(app, (app.name[0],)))
    contents = "\n".join(f"- {each.link}: {first_sentence(each.about)}" for each in commands)
    sections = "\n".join(section(each, commands) for each in commands)
    return (
        f"{NOTICE}\n# Commands\n\nEvery command and option, as `--help` says them. What all "
        "of them have in common, such as exit statuses and completion, is in "
        "[command-line.md](../command-line.md).\n\n"
        f"{contents}\n\n{sections}"
    )


def commands_of(app: App, words: tuple[str, ...]) -> Iterator[Command]:
    """The commands below an app, itself among them if it does something."""
    if app.default_command is not None and len(words) > 1:
        shown = app.assemble_argument_collection(parse_docstring=True)
        arguments = [argument for argument in shown if argument.show]
        yield Command(words, usage(words, arguments), about(app), tuple(map(option, arguments)))
    for name in app:
        if not name.startswith("-") and app[name].show:
            yield from commands_of(app[name], (*words, name))


def about(app: App) -> str:
    """What a command's help says above and below its options, its examples as a block."""
    text = inspect.cleandoc(app.help).partition("\n\nParameters\n---")[0]
    below = re.sub(
        r"((?:^    .+\n?)+)",
        lambda lines: f"```sh\n{textwrap.dedent(lines[1]).strip()}\n```\n",
        app.help_epilogue or "",
        flags=re.MULTILINE,
    )
    return "\n\n".join(part for part in (text, below.strip()) if part)


def usage(words: Sequence[str], arguments: Iterable[Argument]) -> str:
    """The words of a command with what it must be given."""
    needed = [
        place(argument) if is_placed(argument) else f"{argument.name} {place(argument)}"
        for argument in arguments
        if argument.required
    ]
    return " ".join([*words, *needed, "[OPTIONS]"])


def is_placed(argument: Argument) -> bool:
    """Whether it is given by its place: of a function's own parameters those that may be."""
    return argument.index is not None and not argument.keys


def place(argument: Argument) -> str:
    """What stands for its value."""
    return argument.name.removeprefix("--").replace("-", "_").upper()


def option(argument: Argument) -> Option:
    """The row of an argument."""
    name = place(argument) if is_placed(argument) and argument.required else argument.name
    words = [" ".join((argument.parameter.help or "").split())]
    if choices := argument.get_choices():
        words.append("One of " + ", ".join(f"`{choice}`" for choice in choices) + ".")
    return Option(f"`{name}`", " ".join(words).replace("|", "\\|"), default(argument))


def default(argument: Argument) -> str:
    """What holds if it is not given."""
    if argument.required:
        return "required"
    value = argument.field_info.default
    if value is None or value is inspect.Parameter.empty or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    return f"`{value}`"


def section(command: Command, commands: Sequence[Command]) -> str:
    """The section of a command; the options of another that it takes too are there."""
    rows, words = list(command.options), ""
    if other := base(command, commands):
        rows = [row for row in rows if row not in other.options]
        names = {row.name for row in command.options}
        without = [row.name for row in other.options if row.name not in names]
        but = f" but {', '.join(without)}" if without else ""
        words = f"Takes the options of {other.link}{but}" + (", and:\n\n" if rows else ".\n")
    table = "".join(f"| {row.name} | {row.what} | {row.default} |\n" for row in rows)
    heading = "| option | | default |\n|---|---|---|\n" if rows else ""
    return (
        f"## {command.title}\n\n```text\n{command.usage}\n```\n\n{command.about}\n\n"
        f"{words}{heading}{table}"
    )


def base(command: Command, commands: Sequence[Command]) -> Command | None:
    """The last of `BASES`, before the command, of whose options it takes nine tenths alike."""
    by_name = {" ".join(other.words[1:]): other for other in commands}
    name = " ".join(command.words[1:])
    before = BASES[: BASES.index(name)] if name in BASES else BASES
    for other in reversed(before):
        options = set(by_name[other].options)
        if len(options & set(command.options)) > 0.9 * len(options):
            return by_name[other]
    return None


def first_sentence(text: str) -> str:
    """Up to the first full stop at the end of a sentence."""
    return " ".join(re.split(r"(?<=[a-z)`])\.\s", text + " ")[0].split()).rstrip(".")


# --- the names of the Python side -----------------------------------------------------------------


def python() -> str:
    """The page of `diffmining_core`."""
    package = griffe.load(
        "diffmining_core", search_paths=[REPOSITORY], submodules=True, allow_inspection=False
    )
    parts = []
    for heading, words, modules in PUBLIC:
        parts.append(f"## {heading}\n")
        if words:
            parts.append(f"{words}\n")
        for module, names in modules.items():
            found = package[module]
            parts += [documented(resolved(found[name]), 3) for name in names]
    return (
        f"{NOTICE}\n# Python\n\n`diffmining_core` is plain Python, NumPy, Arrow and torch: no "
        "server, no scheduler. These are its names for use from outside; each is imported from "
        "the module that its heading says. Shapes are in square brackets.\n\n" + "\n".join(parts)
    )


def resolved(found: Any) -> Any:
    """What a name that was imported stands for."""
    return found.final_target if found.is_alias else found


def documented(found: Any, level: int) -> str:
    """A function or class with its signature and docstring, and what is public of a class."""
    name = f"{found.parent.name}.{found.name}" if found.parent.is_class else found.path
    text = f"{'#' * level} {name.replace('_', chr(92) + '_')}\n\n"
    if found.is_function:
        text += f"```python\n{signature(found, found.name)}\n```\n\n"
    if found.is_class and (start := found.members.get("__init__")):
        text += f"```python\n{signature(start, found.name)}\n```\n\n"
    text += markdown(found) + "\n"
    if found.is_class:
        members = [each for each in found.members.values() if is_documented(each)]
        lines = [each for each in members if is_line(each)]
        text += "\n" + "".join(map(attribute, lines)) if lines else ""
        others = (each for each in members if not is_line(each))
        text += "".join("\n" + documented(each, level + 1) for each in others)
    return text


def is_line(member: Any) -> bool:
    """Whether it is shown in a line: a field or property that has no example."""
    return bool(member.is_attribute) and EXAMPLE not in member.docstring.value


def is_documented(member: Any) -> bool:
    """Whether it is shown: what is public and has words; the signature shows the other fields."""
    if member.is_alias or member.name.startswith("_"):
        return False
    return (member.is_attribute or member.is_function) and member.docstring is not None


def attribute(field: Any) -> str:
    """A line about a field or property."""
    kind = f" (`{field.annotation}`)" if field.annotation is not None else ""
    return f"- **{field.name}**{kind}: {' '.join(field.docstring.value.split())}\n"


def signature(function: Any, name: str) -> str:
    """Name, parameters and what comes back, over several lines where it is long."""
    parts, last = [], griffe.ParameterKind.positional_or_keyword
    for parameter in function.parameters:
        if parameter.name == "self":
            continue
        if parameter.kind is griffe.ParameterKind.keyword_only and last is not parameter.kind:
            parts.append("*")
        last = parameter.kind
        words = f"{stars(parameter)}{parameter.name}"
        if parameter.annotation is not None:
            words += f": {parameter.annotation}"
        if parameter.default is not None and not stars(parameter):
            words += f" = {parameter.default}"
        parts.append(words)
    returned = "" if function.returns is None or function.name == "__init__" else function.returns
    end = f") -> {returned}" if returned else ")"
    line = f"{name}({', '.join(parts)}{end}"
    if len(line) <= LINE:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + end


def stars(parameter: Any) -> str:
    """What stands before the name of a parameter that takes any number."""
    return {
        griffe.ParameterKind.var_positional: "*",
        griffe.ParameterKind.var_keyword: "**",
    }.get(parameter.kind, "")


def markdown(found: Any) -> str:
    """A docstring as a page shows it, its examples as blocks."""
    text = found.docstring.value if found.docstring else ""
    return re.sub(
        rf"(?:^|(?<=\n)){EXAMPLE}.*?(?=\n\n(?!{EXAMPLE})|\Z)",
        lambda example: f"```pycon\n{example[0]}\n```",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    main()
