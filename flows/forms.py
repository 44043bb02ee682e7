"""The forms that the Prefect UI draws of parameters, and what a server says against values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def plain_optionals(schema: dict[str, Any]) -> None:
    """Make "a number, or null" of a model's JSON schema a number that may be left out.

    The UI draws the former as a choice of types, and says against a wrong number only that it "is
    not valid under any of the given schemas". Prefect takes null for the latter all the same.
    """
    for field in schema["properties"].values():
        match field:
            case {"anyOf": [{"type": str()} as plain, {"type": "null"}], "default": None}:
                if "enum" not in plain:  # there null would have to be one of the values
                    del field["anyOf"], field["default"]
                    field.update(plain)


@dataclass(frozen=True)
class Refusal:
    """What is wrong with which parameter."""

    path: tuple[str, ...]
    """The names from the outermost to the one that is wrong, or whose table is."""
    sentence: str


def refusal(values: dict[str, Any], form: dict[str, Any], *, complete: bool) -> Refusal | None:
    """Why a Prefect server would refuse `values` for this JSON schema, None if it would not.

    complete: whether what the schema requires has to be there.
    """
    from prefect.utilities.schema_tools import ValidationError, validate

    try:
        validate(values, form, raise_on_error=True, ignore_required=not complete)
    except ValidationError as error:
        wrong: Any = error.__cause__
        return Refusal(tuple(map(str, wrong.absolute_path)), wrong.message)
    return None
