"""Run the units of a stage that are not there yet, and go on past those that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from prefect.client.schemas.objects import State

from diffmining_core.errors import InputError
from diffmining_core.store.ledger import published
from diffmining_core.store.roots import open_root
from diffmining_core.store.units import Unit
from tasks.units import Done

Work = TypeVar("Work")


def run_missing(
    root: str,
    work: Sequence[tuple[Unit, Work]],
    run: Callable[[Work], State[Done]],
) -> list[Done]:
    """One `Done` per unit, in order; only units without a manifest are run.

    `run` calls the stage's task and returns its state. A unit that fails does not stop the others;
    at the end the first failure is raised, with the names of all.
    """
    if not work:
        return []
    there = published(open_root(root), work[0][0].stage)
    done: list[Done] = []
    failures: list[tuple[str, BaseException]] = []
    for unit, item in work:
        if unit.key in there:
            done.append(Done(unit.stage, unit.key, computed=False))
            continue
        state = run(item)
        result = state.result(raise_on_failure=False)
        if isinstance(result, Done):
            done.append(result)
        else:
            failures.append((f"{unit.stage}/{unit.key}", result))
    if failures:
        first = failures[0][1]
        if len(failures) == 1 and isinstance(first, InputError):
            raise first
        names = ", ".join(name for name, _ in failures)
        raise _kind(error for _, error in failures)(
            f"{len(failures)} of {len(work)} units failed: {names}; the first because: {first}"
        ) from first
    return done


def _kind(errors: Iterable[BaseException]) -> type[Exception]:
    """The narrowest kind that tells what can be done about them all: mend, try again, look."""
    found = list(errors)
    for kind in (InputError, OSError):
        if all(isinstance(error, kind) for error in found):
            return kind
    return RuntimeError
