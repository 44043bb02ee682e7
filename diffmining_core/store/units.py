"""Units of work, and the keys under which their results are stored and found again."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

JSON = Any
"""None, bool, int, float, str, and lists or str-keyed dicts of these."""


@dataclass(frozen=True)
class Unit:
    """One stage × one input × its parameters.

    stage: the stage's noun, lower case. algo: version of the stage's maths, changed with it.
    inputs: content ids (hashes, unit keys) in a meaningful order; never places, which may move.
    parameters: all else that decides the result, as JSON.
    """

    stage: str
    algo: str
    inputs: tuple[str, ...]
    parameters: Mapping[str, JSON]

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.stage):
            raise ValueError(f"stage {self.stage!r} should be a lower-case word: it names a folder")

    @property
    def key(self) -> str:
        """First 32 hex digits of the sha256 of the unit's canonical JSON.

        TypeError or ValueError for parameters that JSON cannot hold exactly, such as NaN.
        """
        content = {
            "stage": self.stage,
            "algo": self.algo,
            "inputs": list(self.inputs),
            "parameters": dict(self.parameters),
        }
        return hashlib.sha256(canonical_json(content)).hexdigest()[:32]


def canonical_json(value: JSON) -> bytes:
    """The one UTF-8 form of a JSON value: keys sorted, no spaces, no NaN; 1 and 1.0 differ."""
    _check_keys(value)
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _check_keys(value: JSON) -> None:
    """TypeError for keys that json would silently turn into strings, so that 1 and "1" collide."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"JSON has only strings as keys, not {key!r}")
            _check_keys(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_keys(inner)
