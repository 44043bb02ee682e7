"""What all pages are written with: the templates, and the files that they share."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

_HERE = Path(__file__).parent
STATIC = _HERE / "static"


@cache  # to compile the templates takes longer than to fill one
def environment() -> Environment:
    """The templates of all pages, which escape what they are given."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.0f} %"
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment
