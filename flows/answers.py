"""How a command answers: in words for people, or with one JSON document for scripts."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, ParamSpec

from cyclopts import App, Parameter

from diffmining_core.errors import InputError

Arguments = ParamSpec("Arguments")

AsJson = Annotated[
    bool,
    Parameter(
        "--json",
        negative="",
        help="Print the result as one JSON document and nothing else; all that is said meanwhile "
        "goes to the error output.",
    ),
]


@dataclass(frozen=True)
class Told:
    """One thing that a dry run tells: what, its value, and the words for it."""

    what: str
    value: Any
    text: str


def told_table(told: Sequence[Told]) -> str:
    """What a dry run tells, a line each."""
    width = max(len(one.what) for one in told)
    return "\n".join(f"{one.what:{width}}  {one.text}" for one in told)


def told_answer(told: Sequence[Told]) -> Answer:
    """What a dry run tells, as the answer of its command."""
    document = {one.what: one.value for one in told}
    return Answer(document, lambda: print(told_table(told)))


def check_cost(cost_per_hour: float | None) -> None:
    """InputError for what is no price."""
    if cost_per_hour is not None and cost_per_hour < 0:
        raise InputError(f"--cost-per-hour should be 0 or more, but is {cost_per_hour}.")


def cost_told(seconds: float, cost_per_hour: float, most: str = "") -> Told:
    """The price of so many seconds; most: ` at most`, where they may prove fewer."""
    cost = cost_per_hour * seconds / 3600
    return Told("cost", cost, f"about {cost:,.2f}{most}, at {cost_per_hour:g} an hour")


@dataclass(frozen=True)
class Answer:
    """What a command has found or done.

    document: the whole of it, of what JSON knows, dataclasses and paths. say: prints what people
    are told in the end. status: that of the process; see `flows.cli`.
    """

    document: Any
    say: Callable[[], None] = lambda: None
    status: int = 0


def command(
    app: App, *examples: str, name: str | None = None
) -> Callable[[Callable[Arguments, Answer]], Callable[..., None]]:
    """Add a function to the command line, with the option --json and examples below its help."""

    def add(function: Callable[Arguments, Answer]) -> Callable[..., None]:
        answering = _answering(function)
        app.command(answering, name=name, help_epilogue=epilogue(examples))
        return answering

    return add


def epilogue(examples: Sequence[str]) -> str:
    """Examples as they stand below a command's help."""
    lines = "\n".join(f"    {example}" for example in examples)
    return f"{'Examples' if len(examples) > 1 else 'Example'}:\n\n{lines}"


def _check_root_stays(root: str) -> None:
    """InputError for a root in the memory of this process, which ends with the command."""
    if root.startswith("memory:"):
        raise InputError(
            f"root {root} is gone when the command ends; give a local folder, or an address such "
            "as s3://bucket/prefix"
        )


def _answering(function: Callable[Arguments, Answer]) -> Callable[..., None]:
    """The function as a command: it prints the answer, and ends with its status if that is not 0.

    What it prints itself is for people; with --json it goes to the error output.
    """

    @functools.wraps(function)
    def answering(*arguments: Any, as_json: bool = False, **options: Any) -> None:
        for given in (*arguments, *options.values()):
            _check_root_stays(getattr(given, "root", ""))
        if as_json:
            with _nothing_on_stdout():
                answer = function(*arguments, **options)
            print(as_document(answer.document))
        else:
            answer = function(*arguments, **options)
            answer.say()
        if answer.status:
            sys.exit(answer.status)

    signature = inspect.signature(function)
    asked = inspect.Parameter(
        "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=AsJson
    )
    parameters = [*signature.parameters.values(), asked]
    answering.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    answering.__annotations__ = {**function.__annotations__, "as_json": AsJson}
    return answering


def as_document(document: Any) -> str:
    """The document as one line of JSON; numbers that JSON has not become null."""
    from pydantic_core import to_json

    return to_json(document, inf_nan_mode="null").decode()


@contextmanager
def _nothing_on_stdout() -> Iterator[None]:
    """Sends to the error output whatever this process, or one that it starts, prints."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
