"""Mining what is typical of each label with a diffusion model; plain Python, no Prefect.

What a run has made is read with `open_results`:

>>> import diffmining_core as diffmining
>>> diffmining.open_results("mined").labels
['almara', 'borvik']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffmining_core.results.opened import MinedResults, open_results

__all__ = ["MinedResults", "open_results"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for.

    A GPU machine that measures typicality imports this package without what reading results needs.
    """
    if name in __all__:
        from diffmining_core.results import opened

        return getattr(opened, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
